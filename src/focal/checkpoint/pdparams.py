"""Reads .pdparams files of PaddlePaddle, which are pickles, without running anything that is in them.

`paddle.save` pickles a dict of NumPy arrays by parameter name, besides names of its own
(`StructuredToParameterName@@`) and, for pickle protocols below 4, arrays beyond 2^30 bytes in slices
(`UnpackBigParamInfor@@`). This reader accepts the operations that such a file needs, and the few globals of NumPy
become functions of this module, which can make arrays and nothing else.

Paddle keeps the weights of Linear layers transposed, (inputs, outputs), and bfloat16 as uint16.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np

from focal.errors import UserError, one_line

_NAMES = "StructuredToParameterName@@"
_SLICES = "UnpackBigParamInfor@@"
WRAPPERS = ("model", "state_dict", "state_dict_ema")  # keys under which training scripts keep their weights
_OPERATIONS = {
    "PROTO", "FRAME", "STOP", "MARK", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "SETITEM", "SETITEMS",
    "APPEND", "APPENDS", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "NONE", "NEWTRUE", "NEWFALSE", "BININT",
    "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING",
    "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET",
    "LONG_BINGET", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD",
}  # fmt: skip
_DTYPES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")


class _Refused(Exception):
    """The file asks for something that weights do not need."""


def read_pdparams(file: Path) -> dict[str, np.ndarray]:
    """Arrays by parameter name, in PyTorch's layout: Linear weights are transposed back, bfloat16 becomes float32.

    Raises:
        UserError: the file is damaged, holds something else than arrays, or would need to run code.
    """
    try:
        content = file.read_bytes()
        _check_operations(content)
        loaded = _ArrayUnpickler(content).load()
        return {name: _pytorch_layout(name, value) for name, value in _arrays(loaded, len(content)).items()}
    except _Refused as refused:
        raise UserError(
            f"{file}: {one_line(refused, 160)}; a file of plain arrays does not need it, so it is refused"
        ) from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or one_line(error)})") from None
    except Exception as error:  # what a damaged pickle raises can be anything
        raise UserError(f"{file}: not a whole .pdparams file of plain arrays ({one_line(error, 160)})") from None


def _check_operations(content: bytes) -> None:
    """Refuse operations that arrays do not need, and places in the memo that would make Python allocate gigabytes."""
    stored = 0
    for operation, argument, _ in pickletools.genops(content):
        if operation.name not in _OPERATIONS:
            raise _Refused(f"uses the pickle operation {operation.name}")
        if operation.name in ("BINPUT", "LONG_BINPUT"):
            stored += 1
            if argument is None or argument > stored:
                raise ValueError("the pickle's memo has gaps")
        elif operation.name == "MEMOIZE":
            stored += 1


class _Dtype:
    """Stands for a numpy.dtype that is being unpickled."""

    def __init__(self, code: str) -> None:
        if code not in _DTYPES:
            raise _Refused(f"holds an array of type {str(code)[:40]!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for a numpy.ndarray that is being unpickled."""

    value: Optional[np.ndarray] = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, column_major, content = state
        data = content.encode("latin1") if isinstance(content, str) else content
        sizes_valid = all(type(size) is int and size >= 0 for size in shape)
        if not sizes_valid or math.prod(shape) * kind.dtype.itemsize != len(data):
            raise ValueError(f"an array of {len(data)} bytes claims another shape")
        self.value = np.frombuffer(data, kind.dtype).reshape(shape, order="F" if column_major else "C")


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles tuples, dicts, texts, numbers and arrays."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="latin1")
        self._to_encode = len(content)
        multiarray = {f"numpy.{core}.multiarray._reconstruct": lambda *_: _Array() for core in ("core", "_core")}
        self._makers: dict[str, Callable[..., object]] = {
            **multiarray,
            "numpy.ndarray": _not_callable,
            "numpy.dtype": lambda code, *_: _Dtype(code),
            "_codecs.encode": self._encode,
            "collections.OrderedDict": lambda: {},
            "builtins.tuple": _as_tuple,
            "__builtin__.tuple": _as_tuple,
        }

    def find_class(self, module: str, name: str) -> Callable[..., object]:
        """Our function for a known global. A function of its own for each call, as a pickle can set its attributes."""
        maker = self._makers.get(f"{module}.{name}")
        if maker is None:
            raise _Refused(f"asks for {module}.{name}")
        return lambda *arguments: maker(*arguments)

    def _encode(self, text: str, encoding: str) -> bytes:
        """Bytes of an array, which protocol 2 writes as text. A text may be used once, not to fill the memory."""
        self._to_encode -= len(text)
        if encoding != "latin1" or self._to_encode < 0:
            raise ValueError("more bytes than the file has, or not latin1")
        return text.encode(encoding)


def _not_callable(*_: object) -> object:
    raise _Refused("calls numpy.ndarray")


def _as_tuple(items: object) -> object:
    """A tuple, which costs nothing; of other objects `tuple` would make larger ones."""
    if type(items) is not tuple:
        raise _Refused(f"makes a tuple of a {type(items).__name__}")
    return items


def _arrays(loaded: object, file_size: int) -> dict[str, np.ndarray]:
    """Arrays by name in an unpickled file of `file_size` bytes, its slices put together."""
    for wrapper in WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
            break
    if not isinstance(loaded, dict):
        raise ValueError("it holds no dict of arrays")
    slices = loaded.pop(_SLICES, {})
    loaded.pop(_NAMES, None)
    stored = {name: _array(name, value) for name, value in loaded.items()}
    # One array under many names is small in the file, but not when each name gets a copy below.
    if sum(array.nbytes for array in stored.values()) > file_size:
        raise ValueError("its arrays have more bytes than the file")
    found = {name: bfloat16_to_float32(array) if array.dtype == np.uint16 else array for name, array in stored.items()}
    for name, info in slices.items():
        parts = [found.pop(part) for part in info["slices"]]
        found[str(name)] = np.concatenate(parts).reshape(info["OriginShape"])
    return found


def _array(name: object, value: object) -> np.ndarray:
    if isinstance(value, tuple) and len(value) == 2:  # a tensor as Paddle pickles it inside other objects: name, array
        value = value[1]
    if not isinstance(name, str) or not isinstance(value, _Array) or value.value is None:
        raise ValueError(f"its entry {str(name)[:80]!r} is not an array")
    return value.value


def bfloat16_to_float32(bits: np.ndarray) -> np.ndarray:
    """The numbers whose bfloat16 bits are given as uint16; NumPy has no such type."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _pytorch_layout(name: str, value: np.ndarray) -> np.ndarray:
    """Of the parameters of a Focal Transformer, those of Linear layers alone have the name weight and two axes."""
    return np.ascontiguousarray(value.T) if value.ndim == 2 and name.endswith(".weight") else value


def orient_tables(state: Mapping[str, np.ndarray], heads: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Turn bias tables that were transposed like weights of Linear layers back.

    PaddleViT's conversion scripts transpose whatever has two axes; whether its published files have such tables could
    not be checked. The axis that has as many entries as there are heads tells.

    Args:
        state: arrays by official name.
        heads: number of attention heads by the name of the attention, `layers.0.blocks.0.attn`.
    """
    oriented = dict(state)
    for name, value in state.items():
        attention, found, rest = name.partition(".relative_position_bias_table")
        if not found or value.ndim != 2 or attention not in heads:
            continue
        axis = 1 if rest == "" else 0  # ((2 * w - 1)^2, h), but (h, (w + side - 1)^2) for pooled windows
        if value.shape[axis] != heads[attention] and value.shape[1 - axis] == heads[attention]:
            oriented[name] = np.ascontiguousarray(value.T)
    return oriented
