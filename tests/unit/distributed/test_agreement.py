"""What ranks compare before they work together, and the error that names the difference. Ranks are threads here."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import numpy as np
import pytest

from focal.config import Config, load_config, to_flat_dict
from focal.config.loading import all_keys
from focal.data import check_ranks_agree, find_class_names
from focal.data.layout import find_layout
from focal.data.mindrecord import write_mindrecord
from focal.distributed import agreement
from focal.distributed.agreement import (
    MEETING_KEYS,
    Listing,
    check_agreement,
    file_listing,
    settings_listing,
    source_listing,
)
from focal.distributed.device import Device
from focal.errors import UserError


@pytest.fixture
def run_ranks(monkeypatch: pytest.MonkeyPatch):
    """Runs a function of the rank's `Device` on every rank at once; returns the errors."""

    def run(world_size: int, work) -> list[Optional[BaseException]]:
        barrier = threading.Barrier(world_size)
        tables: dict[str, np.ndarray] = {}
        errors: list[Optional[BaseException]] = [None] * world_size

        def all_reduce_sum(mine: np.ndarray) -> np.ndarray:
            assert mine.dtype == np.float32  # the one type that every device can add over ranks
            tables[threading.current_thread().name] = mine
            barrier.wait(30)
            assert len({table.shape for table in tables.values()}) == 1
            total = np.sum(list(tables.values()), axis=0)
            barrier.wait(30)
            return total

        def serve(rank: int) -> None:
            try:
                work(Device(rank, world_size))
            except BaseException as error:
                errors[rank] = error

        monkeypatch.setattr(agreement, "all_reduce_sum", all_reduce_sum)
        threads = [threading.Thread(target=serve, args=(rank,), name=str(rank)) for rank in range(world_size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return errors

    return run


def compare(run_ranks, *entries_of_ranks: Sequence[str]) -> Optional[str]:
    """Compare one list per rank; the message, which must be the same on all ranks, or None."""
    errors = run_ranks(
        len(entries_of_ranks),
        lambda device: check_agreement([Listing.of("names", entries_of_ranks[device.rank])], device),
    )
    assert all(error is None or isinstance(error, UserError) for error in errors), errors
    (message,) = {None if error is None else str(error) for error in errors}
    return message


def test_ranks_that_agree_go_on(run_ranks) -> None:
    assert compare(run_ranks, *[["a", "b", "é\udcff"]] * 3) is None
    assert compare(run_ranks, [], []) is None
    check_agreement([Listing.of("names", ["a"])], Device())  # one process compares with nobody


def test_the_rank_and_the_first_different_entry_are_named(run_ranks) -> None:
    message = compare(run_ranks, ["a", "b", "c"], ["a", "b", "c"], ["a", "x", "y"])
    assert message == (
        "the servers of this job differ in their names: rank 2 from rank 0; first in the names: b on rank 0, x on rank "
        "2; start all servers with the same settings, data and code"
    )


@pytest.mark.parametrize("place", [0, 1, 511, 512, 1300, 1999])
def test_one_difference_in_a_long_list_is_found(run_ranks, place: int) -> None:
    ours = [f"image {index}" for index in range(2000)]
    theirs = [*ours[:place], "other", *ours[place + 1 :]]
    assert f": image {place} on rank 0, other on rank 1;" in compare(run_ranks, ours, theirs)


def test_a_list_that_ends_early_and_swapped_or_joined_entries_differ(run_ranks) -> None:
    assert ": c on rank 0, nothing on rank 1;" in compare(run_ranks, ["a", "b", "c"], ["a", "b"])
    assert ": nothing on rank 0, a on rank 1;" in compare(run_ranks, [], ["a"])
    assert ": a on rank 0, b on rank 1;" in compare(run_ranks, ["a", "b"], ["b", "a"])
    assert ": ab on rank 0, a on rank 1;" in compare(run_ranks, ["ab", "c"], ["a", "bc"])


def test_a_message_stays_short(run_ranks) -> None:
    message = compare(run_ranks, ["ä" * 5000], ["ö" * 5000], *[["ü"]] * 30)
    assert "rank 1, 2, 3, 4, 5, 6, 7, 8, ... from rank 0" in message and len(message) < 600


# ---- what is compared


def changed(config: Config, **keys: object) -> Config:
    return load_config({**to_flat_dict(config), **keys})


def test_settings_are_compared_but_not_those_about_a_servers_devices_and_paths() -> None:
    config = load_config({"node_num": 2, "device_num": 2, "master_port": 8118})
    listing = settings_listing(config)
    entries = [listing.entry(index) for index in range(listing.length)]
    for name, value in {"weight_decay": 0.1, "seed": 3, "eval_every": 2, "max_steps": 7, "batch_size": 2}.items():
        assert f"{name}: {value}" not in entries
        theirs = settings_listing(changed(config, **{name: value}))
        assert f"{name}: {value}" in [theirs.entry(index) for index in range(theirs.length)]
    theirs = settings_listing(changed(config, jit_level="O1"))
    assert "jit_level: 'O1'" in [theirs.entry(index) for index in range(theirs.length)]
    own = {
        "data_url": "/b", "train_url": "/c", "device_id": 4, "node_rank": 1, "cache_dir": "/d", "master_addr": "b",
        "num_parallel_workers": 3, "compile_cache": "/e", "pretrained": "/f", "resume": "auto", "device_num": 4,
    }  # fmt: skip
    theirs = settings_listing(changed(config, **own))
    assert [theirs.entry(index) for index in range(theirs.length)] == entries
    assert set(MEETING_KEYS) < set(all_keys())


def write_images(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


IMAGES = ("train/cat/1.png", "train/cat/2.png", "train/dog/1.png", "val/cat/3.png")


def agreement_of(run_ranks, *folders: Path) -> Optional[str]:
    config = load_config({})
    errors = run_ranks(
        len(folders), lambda device: check_ranks_agree(config, device, find_layout(str(folders[device.rank])))
    )
    (message,) = {None if error is None else f"{type(error).__name__}: {error}" for error in errors}
    return message


def test_images_may_lie_in_another_folder_but_must_have_the_same_names_and_labels(run_ranks, tmp_path: Path) -> None:
    first = write_images(tmp_path / "first", *IMAGES)
    assert agreement_of(run_ranks, first, write_images(tmp_path / "of_second" / "imagenet", *IMAGES).parent) is None
    file = write_images(tmp_path / "file", *IMAGES[:1], "train/cat/9.png", *IMAGES[2:])
    assert agreement_of(run_ranks, first, file) == (
        "UserError: the servers of this job differ in their images of train: rank 1 from rank 0; first in the images "
        "of train: 'cat/2.png' of class 0 on rank 0, 'cat/9.png' of class 0 on rank 1; start all "
        "servers with the same settings, data and code"
    )
    names = write_images(tmp_path / "names", *(name.replace("dog", "fox") for name in IMAGES))
    assert find_class_names(str(names)) == ("cat", "fox")
    message = agreement_of(run_ranks, first, first, names)
    assert "differ in their class names and images of train: rank 2 from rank 0; first in the class names: " in message
    assert "'dog' on rank 0, 'fox' on rank 2" in message
    more = write_images(tmp_path / "more", *IMAGES, "val/dog/1.png")
    assert "differ in their images of val: rank 1" in agreement_of(run_ranks, first, more)


def test_images_in_folders_and_in_any_number_of_mindrecord_files_are_the_same(run_ranks, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "folder", *IMAGES)
    layout = find_layout(str(folder))
    written = []
    for shards in (1, 2):
        output = tmp_path / f"shards{shards}"
        output.mkdir()
        (output / "classes.json").write_text('["cat", "dog"]')
        for split, source in (("train", layout.train), ("val", layout.val)):
            write_mindrecord(source, output, split, min(shards, len(source)), None, 1)
        written.append(output)
    assert agreement_of(run_ranks, folder, *written) is None
    other = write_images(tmp_path / "other", *IMAGES, "train/dog/2.png")
    assert "nothing on rank 0, 'dog/2.png' of class 1 on rank 1" in agreement_of(run_ranks, written[1], other)


def test_a_file_that_each_server_reads_for_itself_is_compared_by_its_content(run_ranks, tmp_path: Path) -> None:
    layout = find_layout(str(write_images(tmp_path, *IMAGES)))
    paths = [tmp_path / "a.ckpt", tmp_path / "b.ckpt"]
    for path in paths:
        path.write_bytes(b"weights")

    def messages(*paths: Optional[Path]) -> set[str]:
        names = [None if path is None else str(path) for path in paths]
        errors = run_ranks(
            len(paths),
            lambda device: check_ranks_agree(
                load_config({}), device, layout, [file_listing("teacher", names[device.rank])]
            ),
        )
        return {str(error) for error in errors}

    assert messages(*paths) == {"None"}
    paths[1].write_bytes(b"others")
    (message,) = messages(*paths)
    assert "differ in their teacher file: rank 1 from rank 0; first in the teacher file: a file with CRC-32 " in message
    assert ": no teacher on rank 0, a file with CRC-32 " in messages(None, paths[0]).pop()
    assert "nothing.ckpt, which cannot be read (No such file or directory) on rank" in str(
        messages(paths[0], Path("nothing.ckpt"))
    )


def test_another_line_of_code_is_noticed(run_ranks, tmp_path: Path) -> None:
    for server in ("a", "b"):
        write_images(tmp_path / server, "models/layers.py", "job.py", "__pycache__/job.pyc")
    write_images(tmp_path / "b", "models/.ipynb_checkpoints/layers-checkpoint.py")
    (tmp_path / "b" / ".#job.py").symlink_to("user@host.1")  # the lock of an editor
    (tmp_path / "b" / "job.py").write_text("y")

    def work(device: Device) -> None:
        check_agreement([source_listing(tmp_path / "ab"[device.rank])], device)

    errors = run_ranks(2, work)
    assert "differ in their source code: rank 1 from rank 0; first in the source code: job.py (SHA-256" in str(
        errors[0]
    )
    (tmp_path / "b" / "job.py").write_text("x")
    assert run_ranks(2, work) == [None, None]
    for server in "ab":
        write_images(tmp_path / server, "train.py")
    (tmp_path / "b" / "train.py").write_text("y")

    def with_script(device: Device) -> None:
        check_agreement([source_listing(tmp_path / "a", tmp_path / "ab"[device.rank] / "train.py")], device)

    assert "first in the source code: the script train.py (SHA-256" in str(run_ranks(2, with_script)[0])
    (tmp_path / "a" / "broken.py").symlink_to("nothing")
    with pytest.raises(UserError, match=r"source code: .*/broken.py cannot be read \(No such file"):
        source_listing(tmp_path / "a")
    listing = source_listing()
    files = [listing.entry(index).split()[0] for index in range(listing.length)]
    assert "trainers/train_one_step.py" in files and "distributed/agreement.py" in files


def test_settings_come_before_data_in_the_message(run_ranks, tmp_path: Path) -> None:
    layout = find_layout(str(write_images(tmp_path, *IMAGES)))
    configs = [load_config({}), load_config({"weight_decay": 0.1})]
    layouts = [layout, dataclasses.replace(layout, class_names=("a", "b"))]
    errors = run_ranks(2, lambda device: check_ranks_agree(configs[device.rank], device, layouts[device.rank]))
    assert "differ in their settings and class names: rank 1" in str(errors[1])
    assert "first in the settings: weight_decay: 0.05 on rank 0, weight_decay: 0.1 on rank 1" in str(errors[1])
