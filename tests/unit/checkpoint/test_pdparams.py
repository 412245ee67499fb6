"""Files of PaddlePaddle: real ones, one in the shape of PaddleViT's, and hostile ones.

paddle/*.pdparams were written by `paddle.save` of PaddlePaddle 3.3.1 with NumPy 2: the state of Linear(3, 2), whose
weight counts from 0 to 5, with the protocols 2 and 4 (the default), under the key `model`, and in bfloat16.
"""

from __future__ import annotations

import collections
import os
import pickle
import resource
import struct
from pathlib import Path

import numpy as np
import pytest

from focal.checkpoint.convert import convert_to_checkpoint
from focal.checkpoint.official import learnable_parameters, official_state_dict
from focal.checkpoint.pdparams import read_pdparams
from focal.checkpoint.weights import read_weights
from focal.config import load_config
from focal.config.architectures import published_archs
from focal.errors import UserError
from focal.models import create_model
from focal.models.ascend_forms import Dense
from tests.numerics.reference_cases import case_config, loaded_network

FOLDER = Path(__file__).parent / "paddle"
STATE = "StructuredToParameterName@@"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.pdparams")), ids=lambda path: path.stem)
def test_files_that_paddle_wrote_are_read(path):
    state = read_pdparams(path)
    assert list(state) == ["weight", "bias"] or list(state) == ["bias", "weight"]
    # As Paddle keeps it: what has no name in front of `.weight` is not a parameter of a network, and is not transposed.
    assert state["weight"].tolist() == [[0, 1], [2, 3], [4, 5]] and state["bias"].tolist() == [0.5, -1]
    assert state["weight"].dtype == np.float32


def paddle_state(state, transpose_tables=False):
    """Official weights as PaddleViT keeps them: no mask buffers of ours, Linear weights transposed."""
    paddle = {}
    for name, value in state.items():
        table = "relative_position_bias_table" in name and "to_neighbors" not in name
        turned = value.ndim == 2 and (name.endswith(".weight") or (transpose_tables and table))
        paddle[name] = np.ascontiguousarray(value.T) if turned else value
    return paddle


def save(path, state, protocol=4):
    """As paddle.save: a dict of arrays, and the names that Paddle gave the parameters."""
    names = {name: f"linear_{number}.w_0" for number, name in enumerate(state)}
    path.write_bytes(pickle.dumps({**state, STATE: names}, protocol=protocol))


@pytest.mark.parametrize("protocol, transpose_tables, buffers", [(2, False, True), (4, True, False)])
def test_weights_of_paddlevit_become_those_of_the_authors(protocol, transpose_tables, buffers, tmp_path):
    """Square matrices are transposed, too, convolutions are not; buffers may be missing, and tables be transposed."""
    config = case_config("nano_v1")
    network = loaded_network("nano_v1")
    state = official_state_dict(network)
    learnable = learnable_parameters(network)
    given = state if buffers else {name: value for name, value in state.items() if name in learnable}
    save(tmp_path / "x.pdparams", paddle_state(given, transpose_tables), protocol)
    assert convert_to_checkpoint(str(tmp_path / "x.pdparams"), str(tmp_path / "x.ckpt"), config) == []
    weights = read_weights(str(tmp_path / "x.ckpt"))
    assert weights.keys() == learnable.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(value, state[name], err_msg=name)
    square = weights["layers.0.blocks.0.attn.proj.weight"]
    assert square.shape[0] == square.shape[1] and not np.array_equal(square, square.T)


def test_linear_weights_alone_have_two_axes_and_the_name_weight():
    """The rule by which weights are transposed, in every published network (with fewer channels and blocks)."""
    for arch in published_archs():
        small = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "image_size": 224}
        network = create_model(load_config({"arch": arch, **small}))
        dense = {id(cell.weight) for _, cell in network.cells_and_names() if isinstance(cell, Dense)}
        for name, parameter in learnable_parameters(network).items():
            linear = id(parameter) in dense or (
                ".pool_layers." in name and name.endswith(".weight")
            )  # nn.Linear upstream
            assert linear == (parameter.ndim == 2 and name.endswith(".weight")), name


def test_arrays_in_slices_are_put_together(tmp_path):
    whole = np.arange(12, dtype=np.float32).reshape(3, 4)
    info = {"layers.0.table": {"OriginShape": (3, 4), "slices": ["layers.0.table@@.0", "layers.0.table@@.1"]}}
    parts = {"layers.0.table@@.0": whole.reshape(-1)[:7], "layers.0.table@@.1": whole.reshape(-1)[7:]}
    (tmp_path / "x.pdparams").write_bytes(pickle.dumps({**parts, "UnpackBigParamInfor@@": info}, protocol=2))
    state = read_pdparams(tmp_path / "x.pdparams")
    assert list(state) == ["layers.0.table"]
    np.testing.assert_array_equal(state["layers.0.table"], whole)


class Calls:
    """Pickled as the call of a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


class Sets:
    """Pickled as an array whose state is set to something else."""

    def __init__(self, value):
        self.value = value

    def __reduce__(self):
        return (np.core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), self.value)


FLOAT32 = np.dtype("f4")


@pytest.mark.parametrize(
    "content, message",
    [
        (lambda trace: {"a": Calls(os.mkdir, trace)}, r"asks for (posix|nt)\.mkdir; a file of plain arrays does not"),
        (lambda trace: {"a": Calls(eval, f"__import__('os').mkdir({trace!r})")}, "asks for builtins.eval"),
        (lambda trace: {"a": Calls(getattr, "x", "upper")}, "asks for builtins.getattr"),
        (lambda trace: {"a": Calls(np.load, trace)}, r"asks for numpy\.load"),
        (lambda trace: {"a": collections.Counter("ab")}, "asks for collections.Counter"),
        (lambda trace: {"a": Calls(np.ndarray, (1 << 40,))}, "calls numpy.ndarray"),
        (lambda trace: {"a": np.array([{}], dtype=object)}, "holds an array of type 'O8'"),
        (lambda trace: {"a": np.array(["text"])}, "holds an array of type 'U4'"),
        (lambda trace: {"a": Sets((1, (1 << 40,), FLOAT32, False, b"1234"))}, "of 4 bytes claims another shape"),
        (lambda trace: {"a": Sets((1, (-1, -1), FLOAT32, False, b"1234"))}, "claims another shape"),
        (lambda trace: {"a": {1, 2}}, "uses the pickle operation EMPTY_SET"),
        (lambda trace: {"a": 3}, "its entry 'a' is not an array"),
        (lambda trace: {"epoch\n": [1]}, "is not an array"),
        (lambda trace: [np.zeros(3)], "it holds no dict of arrays"),
    ],
)  # fmt: skip
def test_a_file_can_make_arrays_and_nothing_else(content, message, tmp_path):
    trace, path = tmp_path / "executed", tmp_path / "x.pdparams"
    path.write_bytes(pickle.dumps(content(str(trace)), protocol=4))
    with pytest.raises(UserError, match=message) as error:
        read_pdparams(path)
    assert not trace.exists() and "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04}r" + struct.pack("<I", 1 << 30) + b".",  # a place far out in the memo, which would take 16 GB
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"12.",  # a text of a terabyte
        b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"}.",  # a frame of one
        # One text of 1 MB, encoded again and again.
        b"\x80\x02}X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20) + b"q\x01c_codecs\nencode\nq\x02"
        + b"h\x02h\x01X\x06\x00\x00\x00latin1\x86R" * 2000 + b".",
        pickle.dumps(dict.fromkeys((f"{number}.weight" for number in range(300)), np.ones((512, 512), np.float32)), 4),
        # One text of 1 MB, made a tuple of numbers again and again, each of 8 MB.
        b"\x80\x04}B" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20) + b"\x94cbuiltins\ntuple\n\x94"
        + b"h\x01h\x00\x85R" * 50 + b".",
        b"", b"\x80\x04", b"\x80\x04.", b"not a pickle",
    ],
    ids=["memo", "text", "frame", "encoded", "one array", "tuples", "empty", "start", "nothing", "words"],
)  # fmt: skip
def test_a_damaged_or_greedy_file_is_refused_without_the_memory_it_asks_for(content, tmp_path):
    path = tmp_path / "x.pdparams"
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="not a whole .pdparams file of plain arrays|makes a tuple of a bytes") as error:
        read_pdparams(path)
    assert "\n" not in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


def test_every_cut_of_a_file_is_recognised(tmp_path):
    whole = (FOLDER / "linear_protocol_2.pdparams").read_bytes()
    path = tmp_path / "x.pdparams"
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match="not a whole .pdparams file"):
            read_pdparams(path)
