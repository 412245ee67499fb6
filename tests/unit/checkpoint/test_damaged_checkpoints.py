"""Damaged and unreadable checkpoints: a named file gives one clear error, `--resume auto` takes the one before it."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Callable

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor
from mindspore.train.checkpoint_pb2 import Checkpoint

from focal.checkpoint.files import CheckpointError, read_checkpoint, write_checkpoint
from focal.checkpoint.paths import check_checkpoint_files
from focal.checkpoint.series import LastCheckpoints
from focal.config import load_config
from focal.errors import UserError

BLOCK = 4096


def write_state(path: Path, number: int) -> bytes:
    """A state of about 40 kB; returns the bytes of the file."""
    values = np.random.default_rng(number).standard_normal(5000).astype(np.float32)
    meta = {"progress": {"epoch": number}, "config": {"batch_size": 4, "accumulation_step": 1}, "world_size": 1}
    write_checkpoint(path, {"w": values, "ema.w": values, "optimizer.step": np.int32(7)}, meta)
    return path.read_bytes()


def with_flipped_byte(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


def refused(path: Path) -> str:
    """The message with which a file is refused; the test fails if it is read."""
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path)
    message = str(error.value)
    assert str(path) in message and "\n" not in message and "permission" not in message.lower()
    return message


def test_a_file_cut_at_any_block_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    content = write_state(path, 1)
    cuts = range(0, len(content), BLOCK)
    assert len(cuts) > 9
    for cut in cuts:
        path.write_bytes(content[:cut])
        assert "damaged" in refused(path) or "cut off" in refused(path)


def test_a_flipped_byte_anywhere_is_refused_as_damage(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    content = write_state(path, 1)
    places = [*range(0, len(content), 97), *range(len(content) - 40, len(content))]
    assert len(places) > 400
    for place in places:
        path.write_bytes(with_flipped_byte(content, place))
        message = refused(path)
        assert "damaged" in message or "checksum" in message, message


def test_a_flipped_byte_in_a_file_of_weights_is_refused_too(tmp_path: Path) -> None:
    """It has no metadata whose loss would tell, so every byte of the checksum and of its mark counts."""
    path = tmp_path / "weights.ckpt"
    write_checkpoint(path, {"head.bias": np.ones(30, np.float32)}, None)
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(with_flipped_byte(content, place))
        assert "damaged" in refused(path)


def test_files_without_a_checksum_are_still_read(tmp_path: Path) -> None:
    path = tmp_path / "elsewhere.ckpt"
    ms.save_checkpoint([Parameter(Tensor(np.ones(3, np.float32)), name="head.bias")], str(path))
    assert b"crc_num" not in path.read_bytes() and list(read_checkpoint(path).tensors) == ["head.bias"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:BLOCK])


def flip(path: Path) -> None:
    path.write_bytes(with_flipped_byte(path.read_bytes(), 2000))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_weights(path: Path) -> None:
    write_checkpoint(path, {"w": np.ones(3, np.float32)}, None)


def replace_by_weights_with_metadata(path: Path) -> None:
    write_checkpoint(path, {"w": np.ones(3, np.float32)}, {"progress": {"epoch": 9}})


FAULTS = [cut, flip, empty, replace_by_folder, replace_by_weights, replace_by_weights_with_metadata]


@pytest.mark.parametrize("fault", FAULTS)
def test_auto_takes_the_checkpoint_before_and_refuses_if_there_is_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: Callable[[Path], None]
) -> None:
    for number in (2, 1):
        write_state(tmp_path / f"last{'' if number == 2 else '.1'}.ckpt", number)
    fault(tmp_path / "last.ckpt")
    newest = LastCheckpoints(tmp_path, 2).newest()
    assert newest is not None and newest.meta is not None and newest.meta["progress"] == {"epoch": 1}
    assert caplog.text.count("trying the one before it") == 1
    fault(tmp_path / "last.1.ckpt")
    with pytest.raises(CheckpointError, match="none of the 2 checkpoint.* leave out --resume"):
        LastCheckpoints(tmp_path, 2).newest()


def forbid(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let the system refuse to open files of this name; the tests may run as root, to whom nothing is forbidden."""
    real = io.open

    def guarded(file, *arguments, **settings):  # type: ignore[no-untyped-def]
        if os.path.basename(str(file)) == name:
            raise PermissionError(13, "Permission denied", str(file))
        return real(file, *arguments, **settings)

    monkeypatch.setattr("builtins.open", guarded)
    monkeypatch.setattr(io, "open", guarded)


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_a_want_of_memory_is_not_taken_for_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """MindSpore itself makes a ValueError of it, for which `--resume auto` would set the file aside."""

    def fail(*arguments: object, **settings: object) -> None:
        raise error

    write_state(tmp_path / "last.ckpt", 1)
    monkeypatch.setattr(Checkpoint, "ParseFromString", fail)
    with pytest.raises(error):
        LastCheckpoints(tmp_path, keep=2).newest()


def test_a_checkpoint_without_permission_says_so_and_auto_takes_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_state(tmp_path / "last.ckpt", 2)
    write_state(tmp_path / "last.1.ckpt", 1)
    forbid(monkeypatch, "last.ckpt")
    with pytest.raises(CheckpointError, match=r"last.ckpt cannot be read \(Permission denied\)"):
        read_checkpoint(tmp_path / "last.ckpt")
    run = load_config({"resume": str(tmp_path / "last.ckpt"), "device_target": "CPU"}).run
    with pytest.raises(UserError, match=r"resume: .*last.ckpt cannot be read \(Permission denied\)"):
        check_checkpoint_files(run)
    newest = LastCheckpoints(tmp_path, 2).newest()
    assert newest is not None and newest.path.name == "last.1.ckpt"


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_state(tmp_path / "last.ckpt", 2)

    def refuse(path: Path) -> list[str]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(CheckpointError, match=r"resume auto: .* cannot be read \(Permission denied\)"):
        LastCheckpoints(tmp_path, 2).newest()
