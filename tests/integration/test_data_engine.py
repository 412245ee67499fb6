"""Batches out of MindSpore's engine: the same whatever the workers, resumable, sharded, and whole with bad files."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np
import pytest
from PIL import Image

from focal.config import load_config
from focal.config.schema import Config
from focal.data import EvalData, TrainData, check_data
from focal.data.batches import TrainBatches
from focal.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]


def make_config(**changes: Any) -> Config:
    keys = {"num_classes": 2, "image_size": 32, "batch_size": 4, "num_parallel_workers": 2, "device_target": "CPU"}
    return load_config({**keys, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ with 26 images and val/ with 13, of two classes."""
    root = tmp_path_factory.mktemp("engine")
    rng = np.random.default_rng(0)
    for split, count in (("train", 26), ("val", 13)):
        for number in range(count):
            path = root / split / "ab"[number % 2] / f"{number:02d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((60, 50), Image.Resampling.BICUBIC).save(path)
    return root


@pytest.fixture
def damaged(folder: Path, tmp_path: Path) -> Path:
    """The same with unreadable files: 3 of train, 2 of val."""
    root = Path(shutil.copytree(folder, tmp_path / "damaged"))
    (root / "train/a/00.jpg").write_bytes(b"")
    (root / "train/b/03.jpg").write_text("a text file")
    for name in ("train/a/10.jpg", "val/a/02.jpg"):
        data = (root / name).read_bytes()
        (root / name).write_bytes(data[: len(data) // 2])
    (root / "val/b/05.jpg").write_bytes(b"")
    return root


def epoch_bytes(root: Path, epoch: int, first_step: int = 0, rank: int = 0, world: int = 1, **keys: Any) -> list[bytes]:
    config = make_config(**keys)
    data = TrainData(config, check_data(config, str(root)), rank, world)
    return [b"".join(array.tobytes() for array in batch) for batch in data.epoch(epoch, first_step)]


@pytest.mark.parametrize("mode", ("batch", "elem"))
def test_batches_do_not_depend_on_workers(folder: Path, mode: str) -> None:
    expected = epoch_bytes(folder, 1, num_parallel_workers=1, mixup_mode=mode)
    assert len(expected) == 6
    # Threads are as many as asked for, the engine's processes no more than processors; the next test goes beyond.
    for keys in ({"num_parallel_workers": 2}, {"num_parallel_workers": 16},
                 {"num_parallel_workers": 2, "worker_processes": True},
                 {"num_parallel_workers": 16, "worker_processes": True}):  # fmt: skip
        assert epoch_bytes(folder, 1, mixup_mode=mode, **keys) == expected, keys


@pytest.mark.parametrize("pool", (ThreadPoolExecutor, ProcessPoolExecutor))
def test_sixteen_workers_in_any_order_make_the_same_batches(folder: Path, pool: Callable[..., Executor]) -> None:
    config = make_config(batch_size=2)
    batches = TrainData(config, check_data(config, str(folder))).batches
    wanted = [(epoch, step) for epoch in range(2) for step in range(batches.steps)]
    expected = {place: _load_bytes(batches, *place) for place in wanted}
    # New processes start from nothing but what is sent to them.
    options = {"mp_context": multiprocessing.get_context("spawn")} if pool is ProcessPoolExecutor else {}
    with pool(16, **options) as workers:
        found = {place: workers.submit(_load_bytes, batches, *place) for place in reversed(wanted)}
        assert {place: future.result() for place, future in found.items()} == expected


def _load_bytes(batches: TrainBatches, epoch: int, step: int) -> bytes:
    return b"".join(array.tobytes() for array in batches.load(epoch, step))


def test_resuming_continues_with_the_very_next_batch(folder: Path) -> None:
    whole = epoch_bytes(folder, 2)
    for first_step in (1, 4, 6):
        assert epoch_bytes(folder, 2, first_step) == whole[first_step:]


def test_epochs_seeds_and_batches_differ(folder: Path) -> None:
    batches = epoch_bytes(folder, 0) + epoch_bytes(folder, 1) + epoch_bytes(folder, 0, seed=1)
    assert len(set(batches)) == len(batches)


def test_one_sample_is_augmented_differently_in_each_epoch_and_place(folder: Path) -> None:
    config = make_config(mix_up=0.0, cutmix=0.0)
    data = TrainData(config, check_data(config, str(folder)))
    seen = {}
    for epoch in range(3):
        for step, (images, *_) in enumerate(data.epoch(epoch)):
            for image, index in zip(images, data.batches.indices(epoch, step).tolist()):
                seen[(epoch, index)] = image.tobytes()
    assert len(set(seen.values())) == len(seen) > 60


def test_dataset_of_several_epochs_holds_the_same_batches(folder: Path) -> None:
    config = make_config()
    data = TrainData(config, check_data(config, str(folder)))
    dataset = data.dataset(3, first_step=2, epochs=2)
    assert dataset.get_col_names() == ["image", "target", "drop_path"] and dataset.get_dataset_size() == 10
    rows = dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)
    found = [b"".join(array.tobytes() for array in batch) for batch in rows]
    assert found == epoch_bytes(folder, 3, 2) + epoch_bytes(folder, 4)


def test_batches_kept_by_the_reader_are_not_overwritten(folder: Path) -> None:
    config = make_config()
    data = TrainData(config, check_data(config, str(folder)))
    kept, copies = [], []
    for images, *_ in data.epoch(0):
        kept.append(images)
        copies.append(images.copy())
    for images, copy in zip(kept, copies):
        assert (images == copy).all()


def test_more_workers_than_processors_are_no_error(folder: Path) -> None:
    workers = (os.cpu_count() or 1) + 3
    assert epoch_bytes(folder, 0, num_parallel_workers=workers) == epoch_bytes(folder, 0)


def test_leaving_an_epoch_early_stops_and_starts_again(folder: Path) -> None:
    config = make_config(num_parallel_workers=4)
    data = TrainData(config, check_data(config, str(folder)))
    firsts = []
    for _ in range(3):
        batches = data.epoch(0)
        firsts.append(next(batches)[0].copy())
        batches.close()
    assert (firsts[0] == firsts[1]).all() and (firsts[1] == firsts[2]).all()


@pytest.mark.parametrize("world", (2, 3))
def test_training_shards_are_disjoint_and_equal(folder: Path, world: int) -> None:
    config = make_config()
    layout = check_data(config, str(folder))
    ranks = [TrainData(config, layout, rank, world) for rank in range(world)]
    assert {data.steps_per_epoch for data in ranks} == {26 // (4 * world)}
    used = [i for data in ranks for step in range(data.steps_per_epoch) for i in data.batches.indices(5, step).tolist()]
    assert len(used) == len(set(used)) == 26 // (4 * world) * 4 * world
    # Two ranks never mix alike.
    assert not set(epoch_bytes(folder, 0, rank=0, world=2)) & set(epoch_bytes(folder, 0, rank=1, world=2))


@pytest.mark.parametrize(("world", "batch"), [(1, 4), (1, 13), (2, 1), (4, 3), (5, 4), (16, 2)])
def test_evaluation_sees_every_image_once(folder: Path, world: int, batch: int) -> None:
    config = make_config(eval_batch_size=batch)
    layout = check_data(config, str(folder))
    reference = EvalData(make_config(eval_batch_size=1), layout)
    expected = sorted((images[0].tobytes(), int(labels[0])) for images, labels, _ in reference)
    found, steps = [], set()
    for rank in range(world):
        data = EvalData(config, layout, rank, world)
        count = 0
        for images, labels, valid in data:
            assert images.shape == (batch, 3, 32, 32) and images.dtype == valid.dtype == np.float32
            assert labels.dtype == np.int32 and labels.shape == valid.shape == (batch,)
            assert not images[valid == 0].any()
            found += [(images[i].tobytes(), int(labels[i])) for i in np.flatnonzero(valid)]
            count += 1
        assert count == data.steps and data.num_images == 13
        steps.add(count)
    assert len(steps) == 1
    assert len(found) == 13 and sorted(found) == expected


@pytest.mark.parametrize("processes", (False, True))
def test_unreadable_training_images_are_replaced_and_reported(
    damaged: Path, caplog: pytest.LogCaptureFixture, processes: bool
) -> None:
    config = make_config(worker_processes=processes)
    data = TrainData(config, check_data(config, str(damaged)))
    with caplog.at_level(logging.WARNING, "focal"):
        first = [images.copy() for images, *_ in data.epoch(0)]
    # 24 of 26 images are drawn in an epoch, so at least one of the three bad ones.
    bad = {str(damaged / name) for name in ("train/a/00.jpg", "train/b/03.jpg", "train/a/10.jpg")}
    assert len(first) == data.steps_per_epoch == 6
    assert data.unreadable and set(data.unreadable) <= bad
    assert all(path in caplog.text for path in data.unreadable)
    # Over and over: the same stand-ins, and counts that grow.
    counts = sum(data.unreadable.values())
    again = [images.copy() for images, *_ in data.epoch(0)]
    assert sum(data.unreadable.values()) == 2 * counts
    assert all((one == other).all() for one, other in zip(first, again))
    assert (data.take_replaced(), data.take_replaced()) == (2 * counts, 0)


def test_unreadable_training_images_are_reported_in_sink_mode_too(
    damaged: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config()
    expected, data = (TrainData(config, check_data(config, str(damaged))) for _ in range(2))
    list(expected.epoch(0))
    with caplog.at_level(logging.WARNING, "focal"):
        batches = list(data.dataset(0).create_tuple_iterator(num_epochs=1, output_numpy=True))
    assert len(batches) == 6 and len(batches[0]) == 3  # nothing but what the step takes goes to the device
    assert data.unreadable == expected.unreadable and all(path in caplog.text for path in data.unreadable)


@pytest.mark.parametrize("processes", (False, True))
def test_nothing_readable_is_one_clear_error(folder: Path, tmp_path: Path, processes: bool) -> None:
    root = Path(shutil.copytree(folder, tmp_path / "broken"))
    for path in (root / "train").rglob("*.jpg"):
        path.write_bytes(b"")
    config = make_config(worker_processes=processes)
    data = TrainData(config, check_data(config, str(root)))
    with pytest.raises(UserError, match="check_dataset.py") as caught:
        list(data.epoch(0))
    assert "empty file" in str(caught.value) and "\n" not in str(caught.value)


def test_unreadable_evaluation_images_are_left_out_and_listed(damaged: Path) -> None:
    config = make_config(eval_batch_size=3)
    layout = check_data(config, str(damaged))
    unreadable, valid_images = [], 0.0
    for rank in range(2):
        data = EvalData(config, layout, rank, 2)
        for _ in range(2):  # a second pass starts the list anew
            valid = [valid.sum() for _, _, valid in data]
        valid_images += sum(valid)
        unreadable += data.unreadable
    assert sorted(unreadable) == [str(damaged / "val/a/02.jpg"), str(damaged / "val/b/05.jpg")]
    assert valid_images == 11


def _script(name: str, *arguments: str, cwd: Optional[Path] = None) -> subprocess.CompletedProcess:
    command = [sys.executable, str(REPOSITORY / "scripts" / name), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def test_check_dataset_names_bad_files(damaged: Path, folder: Path, tmp_path: Path) -> None:
    found = _script("check_dataset.py", "--data_url", str(damaged), "--workers", "2")
    assert found.returncode == 1
    for name in ("train/a/00.jpg", "train/b/03.jpg", "train/a/10.jpg", "val/a/02.jpg", "val/b/05.jpg"):
        assert f"unreadable: {damaged / name} (" in found.stdout
    assert "train: 26 images, 2 classes, 3 unreadable" in found.stdout
    clean = _script("check_dataset.py", "--data_url", str(folder), "--splits", "val")
    assert clean.returncode == 0 and clean.stdout == "val: 13 images, 2 classes, 0 unreadable\n"
    strange = Path(shutil.copytree(folder, tmp_path / "strange")) / "val" / "a" / os.fsdecode(b"\xff.jpg")
    strange.write_bytes(b"no image")
    found = _script("check_dataset.py", "--data_url", str(tmp_path / "strange"), "--splits", "val")
    assert "val/a/\\udcff.jpg (" in found.stdout and "val: 14 images, 2 classes, 1 unreadable" in found.stdout
    missing = _script("check_dataset.py", "--data_url", str(folder / "nowhere"))
    assert missing.returncode == 2 and missing.stderr.startswith("error: data_url") and missing.stderr.count("\n") == 1


def test_show_batch_saves_a_picture(folder: Path, tmp_path: Path) -> None:
    keys = ["--data_url", str(folder), "--num_classes", "2", "--image_size", "64", "--device_target", "CPU"]
    done = _script("show_batch.py", *keys, "--batch_size", "10", "--output", "sheet.png", "--step", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    # Ten images in rows of eight, cells of at least 96 pixels; the last six cells stay white.
    assert sheet.shape == (2 * (64 + 30) + 4, 8 * 100 + 4, 3)
    assert (sheet[98:, 204:] == 255).all() and len(np.unique(sheet[:64, :64])) > 50
    wrong = _script("show_batch.py", *keys, "--batch_size", "10", "--step", "2", cwd=tmp_path)
    assert wrong.returncode == 2 and "an epoch has" in wrong.stderr
    for output in ("sheet", "nowhere/sheet.png"):
        wrong = _script("show_batch.py", *keys, "--batch_size", "10", "--output", output, cwd=tmp_path)
        assert wrong.returncode == 2 and wrong.stderr.startswith(f"error: output: {output} cannot be written")


def test_benchmark_writes_json_also_of_data_with_unreadable_images(damaged: Path, tmp_path: Path) -> None:
    import json

    folder = damaged  # its first image is unreadable

    keys = ["--data_url", str(folder), "--num_classes", "2", "--image_size", "32", "--batch_size", "4"]
    keys += ["--num_parallel_workers", "2", "--device_target", "CPU", "--json", "speed.json"]
    done = _script("benchmark.py", "data", *keys, "--images", "32", "--stage_images", "8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "speed.json").read_text())
    assert set(result["stages_images_per_second"]) == {"decode+crop", "augment", "normalise+erase", "batch+mix"}
    assert all(rate > 0 for rate in result["stages_images_per_second"].values())
    assert result["images_per_second"] > 0 and "whole pipeline" in done.stdout
    typo = _script("benchmark.py", "data", *keys, "--imags", "3")
    assert typo.returncode == 2 and "imags" in typo.stderr


def test_mindrecord_gives_the_same_batches_as_its_folder(folder: Path, tmp_path: Path) -> None:
    """The same pixels and labels in the same order, hence the same training and the same accuracy."""
    made = _script("make_mindrecord.py", "--data_url", str(folder), "--output", str(tmp_path / "mr"), "--shards", "2")
    assert made.returncode == 0, made.stderr
    assert epoch_bytes(tmp_path / "mr", 3) == epoch_bytes(folder, 3)
    assert epoch_bytes(tmp_path / "mr", 3, worker_processes=True) == epoch_bytes(folder, 3)
    passes = []
    for root in (folder, tmp_path / "mr"):
        config = make_config(eval_batch_size=5)
        passes.append(
            [b"".join(array.tobytes() for array in batch) for batch in EvalData(config, check_data(config, str(root)))]
        )
    assert len(passes[0]) == 3 and passes[0] == passes[1]


def test_unreadable_images_stay_so_in_mindrecord(damaged: Path, tmp_path: Path) -> None:
    """Copied as they are, so that both forms report the same."""
    arguments = ("--data_url", str(damaged), "--output", str(tmp_path / "mr"), "--shards", "1", "--short_side", "40")
    assert _script("make_mindrecord.py", *arguments).returncode == 0
    found = _script("check_dataset.py", "--data_url", str(tmp_path / "mr"))
    assert found.returncode == 1 and "train: 26 images, 2 classes, 3 unreadable" in found.stdout
    assert "train.mindrecord:a/10.jpg (" in found.stdout
