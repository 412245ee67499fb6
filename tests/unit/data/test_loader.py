"""Batches are the same whatever the workers, resumable, sharded over ranks, and complete despite unreadable files."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable

import numpy as np
import pytest

from focal.config.schema import Config
from focal.data import EvalData, TrainBatch, TrainData, check_data, load_eval_image
from focal.data.decode import refuse_shortage
from focal.data.folder import ImageFiles
from focal.data.transforms.normalize import normalize
from focal.errors import UserError

MakeConfig = Callable[..., Config]
WORKERS = [
    {"num_parallel_workers": 1},
    {"num_parallel_workers": 16},
    {"num_parallel_workers": (os.cpu_count() or 1) + 3, "worker_processes": True},  # more than the engine allows
]
BAD_TRAIN = ("train/a/000.jpg", "train/b/003.jpg", "train/c/005.jpg")
BAD_VAL = ("val/a/002.jpg", "val/b/003.jpg")


@pytest.fixture
def damaged(image_folder: Path, tmp_path: Path) -> Path:
    """A copy of image_folder in which 3 images of train and 2 of val are empty, text or truncated."""
    root = Path(shutil.copytree(image_folder, tmp_path / "damaged"))
    for name, content in zip(BAD_TRAIN + BAD_VAL, (b"", b"a text file", None, None, b"")):
        data = (root / name).read_bytes()
        (root / name).write_bytes(data[: len(data) // 2] if content is None else content)
    return root


def train_data(config: Config, root: Path, rank: int = 0, world_size: int = 1) -> TrainData:
    return TrainData(config, check_data(config, str(root)), rank, world_size)


def packed(batch: tuple[np.ndarray, ...]) -> bytes:
    return b"".join(array.tobytes() for array in batch)


@pytest.mark.parametrize("mode", ("batch", "elem"))
def test_batches_do_not_depend_on_the_number_and_kind_of_workers(
    image_folder: Path, make_config: MakeConfig, mode: str
) -> None:
    data = train_data(make_config(mixup_mode=mode), image_folder)
    expected = [packed(data.load_batch(1, step)[0]) for step in range(5)]
    for keys in WORKERS:
        found = train_data(make_config(mixup_mode=mode, **keys), image_folder).epoch(1)
        assert [packed(batch) for batch in found] == expected, keys


def test_batches_made_in_any_order_by_a_copy_in_sixteen_threads_are_the_same(
    image_folder: Path, make_config: MakeConfig
) -> None:
    data = train_data(make_config(batch_size=2), image_folder)
    places = [(epoch, step) for epoch in range(2) for step in range(data.batches_per_epoch)]
    expected = {place: packed(data.load_batch(*place)[0]) for place in places}
    copy = pickle.loads(pickle.dumps(data))  # as a new process receives it
    with ThreadPoolExecutor(16) as pool:
        found = {place: pool.submit(copy.load_batch, *place) for place in reversed(places)}
        assert {place: packed(future.result()[0]) for place, future in found.items()} == expected


def test_resuming_in_an_epoch_continues_with_the_next_batch(image_folder: Path, make_config: MakeConfig) -> None:
    data = train_data(make_config(), image_folder)
    whole = [packed(batch) for batch in data.epoch(2)]
    assert len(whole) == data.batches_per_epoch == 5
    for first_step in (1, 4, 5):
        assert [packed(batch) for batch in data.epoch(2, first_step)] == whole[first_step:]


def test_batches_of_other_epochs_seeds_and_ranks_differ(image_folder: Path, make_config: MakeConfig) -> None:
    batches = [
        packed(train_data(make_config(seed=seed), image_folder, rank, 2).load_batch(epoch, step)[0])
        for seed in (0, 1) for rank in (0, 1) for epoch in (0, 1) for step in (0, 1)
    ]  # fmt: skip
    assert len(set(batches)) == len(batches) == 16


def test_a_sample_is_augmented_differently_in_each_epoch(image_folder: Path, make_config: MakeConfig) -> None:
    data = train_data(make_config(mix_up=0.0, cutmix=0.0), image_folder)
    seen = {}
    for epoch in range(3):
        for step in range(data.batches_per_epoch):
            for image, index in zip(data.load_batch(epoch, step)[0].images, data.sampler.indices(epoch, step).tolist()):
                seen[(epoch, index)] = image.tobytes()
    assert len(set(seen.values())) == len(seen) == 60


def test_copies_of_an_image_are_augmented_differently_and_resume_within_an_epoch(
    image_folder: Path, make_config: MakeConfig
) -> None:
    data = train_data(make_config(aug_repeats=3, mix_up=0.0, cutmix=0.0), image_folder)
    whole = list(data.epoch(1))
    assert len(whole) == data.batches_per_epoch == 5  # as without repeats
    images = [image.tobytes() for batch in whole for image in batch[0]]
    targets = [target.tobytes() for batch in whole for target in batch[1]]
    assert len(set(images)) == len(images) == 20
    assert all(len(set(targets[first : first + 3])) == 1 for first in range(0, 20, 3))  # copies stand side by side
    assert [packed(batch) for batch in data.epoch(1, 2)] == [packed(batch) for batch in whole[2:]]
    # The first copies are what the same images would be without repeats.
    plain = train_data(make_config(mix_up=0.0, cutmix=0.0), image_folder)
    without = {
        index: image.tobytes()
        for step in range(5)
        for index, image in zip(plain.sampler.indices(1, step).tolist(), plain.load_batch(1, step)[0].images)
    }
    visited = [index for step in range(5) for index in data.sampler.indices(1, step).tolist()]
    both = [place for place in range(0, 20, 3) if visited[place] in without]
    assert len(both) >= 5 and all(images[place] == without[visited[place]] for place in both)


@pytest.mark.parametrize("mode", ("batch", "elem"))
def test_mixing_stops_with_mixup_off_epoch_and_nothing_else_changes(
    image_folder: Path, make_config: MakeConfig, mode: str
) -> None:
    mixed, stops, never = (
        train_data(make_config(mixup_mode=mode, **keys), image_folder)
        for keys in ({}, {"mixup_off_epoch": 2}, {"mix_up": 0.0, "cutmix": 0.0})
    )
    for step in range(mixed.batches_per_epoch):
        assert packed(stops.load_batch(1, step)[0]) == packed(mixed.load_batch(1, step)[0])
        after, before = stops.load_batch(2, step)[0], stops.load_batch(1, step)[0]
        assert packed(after) == packed(never.load_batch(2, step)[0])
        assert [(a.shape, a.dtype) for a in after] == [(b.shape, b.dtype) for b in before]  # nothing is compiled again
        assert (after.targets.max(1) > 0.9).all() and not after.partner_rows.any()
    # A training that resumes in that epoch is given the same batches.
    assert [packed(batch) for batch in stops.epoch(2, 3)] == [packed(stops.load_batch(2, step)[0]) for step in (3, 4)]


def test_dataset_over_several_epochs_holds_the_same_batches(image_folder: Path, make_config: MakeConfig) -> None:
    data = train_data(make_config(), image_folder)
    dataset = data.dataset(3, first_step=2, epochs=2)
    assert tuple(dataset.get_col_names()) == TrainBatch._fields and dataset.get_dataset_size() == 8
    found = [packed(batch) for batch in dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)]
    assert found == [packed(batch) for batch in (*data.epoch(3, 2), *data.epoch(4))]


def test_batches_that_the_reader_keeps_are_not_overwritten(image_folder: Path, make_config: MakeConfig) -> None:
    kept = [(images, images.copy()) for images, *_ in train_data(make_config(), image_folder).epoch(0)]
    assert all((images == copy).all() for images, copy in kept)


def test_an_epoch_can_be_left_early_and_started_again(image_folder: Path, make_config: MakeConfig) -> None:
    data = train_data(make_config(num_parallel_workers=4), image_folder)
    firsts = []
    for _ in range(3):
        batches = data.epoch(0)
        firsts.append(packed(next(batches)))
        batches.close()
    assert len(set(firsts)) == 1


def test_too_few_images_for_a_batch_on_every_rank_are_refused(image_folder: Path, make_config: MakeConfig) -> None:
    with pytest.raises(UserError, match="at most 2"):
        train_data(make_config(), image_folder, world_size=8)
    with pytest.raises(UserError, match="use at most 22 devices"):
        train_data(make_config(), image_folder, world_size=23)


@pytest.mark.parametrize("keys", WORKERS)
def test_unreadable_training_images_are_replaced_named_and_counted(
    damaged: Path, make_config: MakeConfig, caplog: pytest.LogCaptureFixture, keys: dict[str, object]
) -> None:
    data = train_data(make_config(**keys), damaged)
    with caplog.at_level(logging.WARNING, "focal"):
        first = [packed(batch) for batch in data.epoch(0)]
    # An epoch has 20 of the 22 images, hence at least one of the three bad ones.
    assert len(first) == 5
    assert data.unreadable and set(data.unreadable) <= {str(damaged / name) for name in BAD_TRAIN}
    assert sorted(record.getMessage().split(": ")[1] for record in caplog.records) == sorted(data.unreadable)
    # The same images take their places every time, and the counts grow.
    count = sum(data.unreadable.values())
    assert [packed(batch) for batch in data.epoch(0)] == first
    assert sum(data.unreadable.values()) == 2 * count
    assert (data.take_replaced(), data.take_replaced()) == (2 * count, 0)


@pytest.mark.parametrize("processes", (False, True))
def test_unreadable_training_images_are_reported_in_sink_mode_too(
    damaged: Path, make_config: MakeConfig, caplog: pytest.LogCaptureFixture, processes: bool
) -> None:
    expected, data = (train_data(make_config(worker_processes=processes), damaged) for _ in range(2))
    list(expected.epoch(0))
    caplog.clear()
    with caplog.at_level(logging.WARNING, "focal"):
        batches = list(data.dataset(0).create_tuple_iterator(num_epochs=1, output_numpy=True))
    assert len(batches) == 5 and len(batches[0]) == len(
        TrainBatch._fields
    )  # only what the step takes goes to the device
    assert data.unreadable == expected.unreadable and all(path in caplog.text for path in data.unreadable)


@pytest.mark.parametrize("processes", (False, True))
def test_training_on_nothing_readable_ends_with_one_clear_error(
    image_folder: Path, tmp_path: Path, make_config: MakeConfig, caplog: pytest.LogCaptureFixture, processes: bool
) -> None:
    root = Path(shutil.copytree(image_folder, tmp_path / "broken"))
    for path in (root / "train").rglob("*.jpg"):
        path.write_bytes(b"")
    data = train_data(make_config(worker_processes=processes), root)
    with pytest.raises(UserError, match="check_dataset.py") as caught:
        list(data.epoch(0))
    assert "empty file" in str(caught.value) and "\n" not in str(caught.value)
    caplog.clear()
    with pytest.raises(RuntimeError):  # in sink mode the engine raises an error of its own; the log has ours
        list(data.dataset(0).create_tuple_iterator(num_epochs=1, output_numpy=True))
    assert [record.getMessage() for record in caplog.records] == [str(caught.value)]


@pytest.mark.parametrize(("world", "batch"), [(1, 4), (1, 13), (2, 1), (5, 4), (16, 2)])
def test_evaluation_counts_every_image_once(
    image_folder: Path, make_config: MakeConfig, world: int, batch: int
) -> None:
    config = make_config(eval_batch_size=batch)
    layout = check_data(config, str(image_folder))
    assert layout.val is not None
    found, steps = [], set()
    for rank in range(world):
        data = EvalData(config, layout, rank, world)
        batches = list(data)
        for images, labels, valid in batches:
            assert images.shape == (batch, 3, 32, 32) and images.dtype == np.uint8 and valid.dtype == np.float32
            assert labels.dtype == np.int32 and labels.shape == valid.shape == (batch,)
            assert not images[valid == 0].any()
            found += [(normalize(images[i], config.data).tobytes(), int(labels[i])) for i in np.flatnonzero(valid)]
        assert len(batches) == data.steps and data.num_images == 13
        steps.add(len(batches))
    expected = [(load_eval_image(layout.val.name(i), config).tobytes(), int(layout.val.labels[i])) for i in range(13)]
    assert len(steps) == 1 and sorted(found) == sorted(expected)


@pytest.mark.parametrize("processes", (False, True))
def test_unreadable_evaluation_images_are_left_out_and_listed(
    damaged: Path, make_config: MakeConfig, processes: bool
) -> None:
    config = make_config(eval_batch_size=3, worker_processes=processes)
    layout = check_data(config, str(damaged))
    unreadable, valid_images = [], 0.0
    for rank in range(2):
        data = EvalData(config, layout, rank, 2)
        for _ in range(2):  # a second pass makes a new list
            valid_images += sum(valid.sum() for _, _, valid in data) / 2
        unreadable += data.unreadable
    assert sorted(unreadable) == [str(damaged / name) for name in BAD_VAL]
    assert valid_images == 11


def test_unreadable_single_image_is_a_user_error(tmp_path: Path, make_config: MakeConfig) -> None:
    (tmp_path / "x.jpg").write_text("text")
    for name in ("x.jpg", "none.jpg"):
        with pytest.raises(UserError, match=name):
            load_eval_image(str(tmp_path / name), make_config())


@pytest.mark.parametrize("processes", (False, True))
@pytest.mark.parametrize("split", ("train", "val"))
def test_without_file_handles_no_sound_image_is_replaced_or_left_out(
    image_folder: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, split: str, processes: bool
) -> None:
    """It ends training and evaluation with one clear error, from threads and from processes."""
    config = make_config(worker_processes=processes)
    layout = check_data(config, str(image_folder))
    source, read = getattr(layout, split), type(layout.train).read

    def read_most(self: ImageFiles, index: int) -> bytes:
        if self is source and index == 5:
            refuse_shortage(OSError(errno.EMFILE, "Too many open files"))
        return read(self, index)

    monkeypatch.setattr(ImageFiles, "read", read_most)
    data = TrainData(config, layout) if split == "train" else EvalData(config, layout)
    with pytest.raises(UserError, match="^num_parallel_workers: .*Too many open files.*; lower it or raise ulimit -n$"):
        list(data.epoch(0) if isinstance(data, TrainData) else data)
    assert not data.unreadable
