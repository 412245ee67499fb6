"""One checkpoint file: what is read is whole, and what is not whole is recognised."""

from __future__ import annotations

import contextlib
import os

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor

from focal.checkpoint.files import CheckpointError, read_checkpoint, write_checkpoint


def tensors(value=0.0):
    rng = np.random.default_rng(0)
    return {
        "head.weight": rng.standard_normal((5, 3)).astype(np.float32) + np.float32(value),
        "ema.head.weight": rng.standard_normal((5, 3)).astype(np.float32),
        "optimizer.step": np.int32(7),
    }


def test_a_checkpoint_is_read_back_to_the_bit(tmp_path):
    path = tmp_path / "deep" / "a.ckpt"
    meta = {"progress": {"epoch": 3}, "text": "naïve", "config": {"depths": [2, 2], "rate": 1e-5, "none": None}}
    write_checkpoint(path, tensors(), meta)
    read = read_checkpoint(path)
    assert {key: read.meta[key] for key in meta} == meta
    assert read.tensors.keys() == tensors().keys()
    for name, value in tensors().items():
        assert read.tensors[name].dtype == value.dtype and (read.tensors[name] == value).all()
    assert os.listdir(path.parent) == ["a.ckpt"], "no temporary file is left"
    assert os.stat(path).st_mode & 0o777 == 0o644
    assert set(ms.load_checkpoint(str(path))) >= set(tensors()), "MindSpore itself reads it"


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_recognised(tmp_path, fraction):
    path = tmp_path / "a.ckpt"
    write_checkpoint(path, tensors(), {})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_file_cut_between_two_tensors_is_recognised(tmp_path):
    """Protobuf alone would take the shorter file for whole: only the missing checksum shows it."""
    path = tmp_path / "a.ckpt"
    write_checkpoint(path, tensors(), {})
    path.write_bytes(path.read_bytes()[:-17])
    with pytest.raises(CheckpointError, match="cut off"):
        read_checkpoint(path)


def test_one_flipped_bit_is_recognised(tmp_path):
    path = tmp_path / "a.ckpt"
    write_checkpoint(path, tensors(), {})
    content = bytearray(path.read_bytes())
    content[60] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError):
        read_checkpoint(path)


@pytest.mark.parametrize("name, content", [("a.ckpt", b"a picture"), ("a.pth", b"PK\x03\x04"), ("a.ckpt", b"")])
def test_foreign_files_are_refused_in_one_line(tmp_path, name, content, capfd):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(tmp_path / name)
    assert "\n" not in str(error.value) and name in str(error.value)
    assert capfd.readouterr().err == "", "MindSpore's own message would come on top"


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        read_checkpoint(tmp_path / "no.ckpt")
    with pytest.raises(CheckpointError, match="is a folder"):
        read_checkpoint(tmp_path)


def test_weights_from_elsewhere_have_no_metadata(tmp_path):
    path = tmp_path / "plain.ckpt"
    ms.save_checkpoint([Parameter(Tensor(np.ones(3, np.float32)), name="head.bias")], str(path))
    read = read_checkpoint(path)
    assert read.meta is None and list(read.tensors) == ["head.bias"]


@pytest.mark.parametrize("meta", [{"number": 1}, None])
def test_every_cut_is_recognised(tmp_path, meta):
    """Also at the seams between entries, where the format itself sees nothing amiss, and in converted weights."""
    path = tmp_path / "a.ckpt"
    names = ("w.a", "w.b", "ema.w.a", "ema.w.b", "optimizer.step") if meta else ("w.a", "w.b", "head.weight")
    write_checkpoint(path, {name: np.ones(2, np.float32) for name in names}, meta)
    content = path.read_bytes()
    assert read_checkpoint(path).tensors.keys() == set(names)
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError) as error:
            read_checkpoint(path)
        assert "\n" not in str(error.value)


def test_a_file_without_the_number_of_its_tensors_is_known_to_be_cut_by_what_it_holds(tmp_path):
    """As earlier versions wrote it: neither optimizer state nor averages come from elsewhere."""
    path = tmp_path / "a.ckpt"
    entries = [Parameter(Tensor(np.ones(2, np.float32)), name=name) for name in ("w.a", "ema.w.a", "ema.w.b")]
    ms.save_checkpoint(entries, str(path), append_dict={"focal.meta": '{"format": 1}'}, crc_check=True)
    content = path.read_bytes()
    assert read_checkpoint(path).meta == {"format": 1}
    path.chmod(0o644)
    accepted = []
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with contextlib.suppress(CheckpointError):
            accepted.append(sorted(read_checkpoint(path).tensors))
    assert accepted == [["w.a"]]  # a network tells whether that is all it has


def test_texts_in_files_from_elsewhere_are_left_out(tmp_path):
    path = tmp_path / "plain.ckpt"
    weight = Parameter(Tensor(np.ones(3, np.float32)), name="head.bias")
    ms.save_checkpoint([weight], str(path), append_dict={"note": "x", "epoch": 3})
    assert "head.bias" in read_checkpoint(path).tensors and "note" not in read_checkpoint(path).tensors


@pytest.mark.parametrize("text", ["no json", "[1]", "{}", '"x"'])
def test_damaged_metadata_is_one_error(tmp_path, text):
    path = tmp_path / "a.ckpt"
    weight = Parameter(Tensor(np.ones(3, np.float32)), name="head.bias")
    ms.save_checkpoint([weight], str(path), append_dict={"focal.meta": text}, crc_check=True)
    with pytest.raises(CheckpointError, match="focal.meta"):
        read_checkpoint(path)


def test_what_a_killed_write_left_does_not_stop_the_next_one(tmp_path):
    """MindSpore leaves its own temporary file, and write-protects the finished one before it is renamed."""
    path = tmp_path / "a.ckpt"
    (tmp_path / ".partial.a.tmp").write_bytes(b"half")
    (tmp_path / ".partial.a.ckpt").write_bytes(b"whole, but not renamed")
    (tmp_path / ".partial.a.ckpt").chmod(0o400)
    write_checkpoint(path, tensors(), {})
    assert read_checkpoint(path).tensors.keys() == tensors().keys()
    assert os.listdir(tmp_path) == ["a.ckpt"]
