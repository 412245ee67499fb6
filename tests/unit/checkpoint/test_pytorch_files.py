"""Weight files of PyTorch, and that nothing in a file is executed."""

import os
import pickle
import sys

import numpy as np
import pytest

from focal.checkpoint.weight_files import read_official_weights, write_official_weights
from focal.errors import UserError
from tests.unit.checkpoint.conversion import HAS_TORCH, assert_same_entries, needs_torch


@needs_torch
@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_a_pth_file_may_be_bare_or_wrapped(wrapper, tmp_path):
    import torch

    tensors = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.arange(3), "half": torch.ones(2).bfloat16()}
    path = tmp_path / "weights.pth"
    torch.save(tensors if wrapper is None else {wrapper: tensors, "epoch": 3, "optimizer": {"lr": 1.0}}, path)
    state = read_official_weights(str(path))
    expected = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(3), "half": np.ones(2, "f4")}
    assert_same_entries(state, expected)


@needs_torch
def test_a_pth_file_without_a_state_dict_is_refused(tmp_path):
    import torch

    torch.save({"epoch": 3}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="holds no state dict, neither bare nor under model, state_dict"):
        read_official_weights(str(tmp_path / "weights.pth"))


@needs_torch
def test_a_pth_file_of_tensors_that_require_gradients_is_read(tmp_path):
    import torch

    torch.save({"a": torch.nn.Parameter(torch.ones(2))}, tmp_path / "a.pth")
    assert read_official_weights(str(tmp_path / "a.pth"))["a"].tolist() == [1, 1]
    torch.save({"a": torch.eye(2).to_sparse()}, tmp_path / "b.pth")
    with pytest.raises(UserError, match="not a plain array|plain weights"):
        read_official_weights(str(tmp_path / "b.pth"))


class Intruder:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("kind", ["pickle", "torch", "npz"])
def test_nothing_in_a_file_is_executed(kind, tmp_path):
    trace = tmp_path / "executed"
    path = tmp_path / ("weights.npz" if kind == "npz" else "weights.pth")
    if kind == "npz":
        np.savez(path, weight=np.array([Intruder(trace)], dtype=object))
        message = "not a whole npz file of plain arrays"
    else:
        message = "would need to run code is refused" if HAS_TORCH else "needs PyTorch; pip install torch"
        if kind == "torch":
            torch = pytest.importorskip("torch", reason="PyTorch is an optional extra: pip install torch")
            torch.save({"model": {"weight": Intruder(trace)}}, path)
        else:
            path.write_bytes(pickle.dumps({"model": {"weight": Intruder(trace)}}))
    with pytest.raises(UserError, match=message) as error:
        read_official_weights(str(path))
    assert not trace.exists() and "\n" not in str(error.value)


def test_a_missing_pytorch_is_reported(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # makes `import torch` fail
    (tmp_path / "weights.pth").write_bytes(b"x")
    with pytest.raises(UserError, match=r"\.pth: needs PyTorch; pip install torch, or use \.safetensors or \.npz"):
        read_official_weights(str(tmp_path / "weights.pth"))
    with pytest.raises(UserError, match="needs PyTorch"):
        write_official_weights(str(tmp_path / "out.pth"), {})
