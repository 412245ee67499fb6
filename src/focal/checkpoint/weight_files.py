"""Weight files of other programs: .pth, .safetensors, .npz and .pdparams. Nothing in a file is executed."""

from __future__ import annotations

import hashlib
import math
import zipfile
from pathlib import Path
from typing import IO, Any, Callable, Mapping, Optional

import numpy as np

from focal.checkpoint.pdparams import WRAPPERS, bfloat16_to_float32, read_pdparams
from focal.errors import UserError, one_line
from focal.files import atomic_write

_MOST_BYTES = 4 << 30  # of an .npz file once unpacked; the largest published network has 0.4e9
_SAFETENSORS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
                "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?"}  # fmt: skip


def describe_file(path: str) -> str:
    """Size and checksum in one line, to compare with those that a publisher gives.

    Raises:
        UserError: the file cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    try:
        with open(path, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
                size += len(block)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or one_line(error)})") from None
    return f"{path}: {size:,} bytes, sha256 {digest.hexdigest()}"


def read_official_weights(path: str) -> dict[str, np.ndarray]:
    """Arrays by official name from a .pth, .pt, .safetensors, .npz or .pdparams file. Nothing in it is executed.

    Raises:
        UserError: the file does not exist, is of an unknown kind or damaged, or the package that reads it is missing.
    """
    file = Path(path)
    reader = READERS[_kind_of(file)]
    if not file.is_file():
        raise UserError(f"{path}: no such file")
    state = reader(file)
    strange = [name for name, value in state.items() if value.dtype.kind not in "biuf"]
    if strange:
        raise UserError(f"{path}: {strange[0]} holds {state[strange[0]].dtype} instead of numbers")
    return state


def _kind_of(file: Path) -> str:
    kind = file.suffix.lower()
    if kind not in READERS:
        raise UserError(f"{file}: unknown kind of weight file; known are {', '.join(READERS)}")
    return kind


def _read_pth(file: Path) -> dict[str, np.ndarray]:
    torch = _import_torch(file)
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{file}: PyTorch cannot read it as plain weights ({one_line(error, 160)}); a file that would need to run "
            "code is refused"
        ) from None
    for wrapper in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
            break
    if not isinstance(loaded, Mapping) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise UserError(f"{file}: holds no state dict, neither bare nor under {', '.join(WRAPPERS)}")
    try:
        # NumPy has no bfloat16, and our weights are float32 whatever the file's were.
        return {
            str(name): (value.float() if value.is_floating_point() else value).detach().resolve_conj().numpy()
            for name, value in loaded.items()
        }
    except (RuntimeError, TypeError, NotImplementedError) as error:  # for example a sparse tensor
        raise UserError(f"{file}: holds a tensor that is not a plain array ({one_line(error, 160)})") from None


def _read_safetensors(file: Path) -> dict[str, np.ndarray]:
    safetensors = _import_safetensors(file)
    try:
        entries = safetensors.deserialize(file.read_bytes())  # compares sizes, shapes and places with one another
    except Exception as error:
        raise UserError(f"{file}: not a whole safetensors file ({one_line(error, 160)})") from None
    arrays = {}
    for name, entry in entries:
        kind = entry["dtype"]
        if kind != "BF16" and kind not in _SAFETENSORS:
            raise UserError(f"{file}: {name} holds numbers of type {kind}, which NumPy does not have")
        flat = np.frombuffer(entry["data"], _SAFETENSORS.get(kind, "<u2"))
        arrays[name] = (bfloat16_to_float32(flat) if kind == "BF16" else flat).reshape(entry["shape"])
    return arrays


def _read_npz(file: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(file) as archive:
            _check_npz(archive)
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # zip files, their compression and array headers each have their own exceptions
        raise UserError(f"{file}: not a whole npz file of plain arrays ({one_line(error, 160)})") from None


def _check_npz(archive: zipfile.ZipFile) -> None:
    """Refuse arrays that are larger than their file says, and files that would fill the memory, before any is read.

    Raises:
        ValueError: the sizes do not agree or are too large.
    """
    total = sum(entry.file_size for entry in archive.infolist())  # zipfile reads no more of an entry than this
    if total > _MOST_BYTES:
        raise ValueError(f"it unpacks to {total:,} bytes, more than the {_MOST_BYTES:,} allowed")
    for entry in archive.infolist():
        with archive.open(entry) as stream:
            size = _array_size(stream)
            if size is not None and size != entry.file_size - stream.tell():
                raise ValueError(f"{entry.filename} claims {size:,} bytes, but has {entry.file_size - stream.tell():,}")


def _array_size(stream: IO[bytes]) -> Optional[int]:
    """Bytes of the array whose .npy header `stream` holds; None for Python objects, which np.load refuses."""
    header = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    version, _ = np.lib.format.read_magic(stream)
    if version not in header:
        raise ValueError("names of structured arrays that are not plain text")
    shape, _, dtype = header[version](stream)
    return None if dtype.hasobject else math.prod(shape) * dtype.itemsize


READERS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    ".pth": _read_pth,
    ".pt": _read_pth,
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
    ".pdparams": read_pdparams,
}


def write_official_weights(path: str, state: Mapping[str, np.ndarray]) -> None:
    """Write arrays by official name to .pth or .pt (under `model`, like the authors' files), .safetensors or .npz.

    Raises:
        UserError: the file is of an unknown kind or cannot be written, or the package that writes it is missing.
    """
    file = Path(path)
    kind = _kind_of(file)
    if kind == ".pdparams":
        raise UserError(f"{file}: .pdparams files are read, but not written; write .npz instead")
    arrays = {name: np.ascontiguousarray(value) for name, value in state.items()}
    try:
        with atomic_write(file) as temporary:
            if kind == ".npz":
                with temporary.open("wb") as stream:  # given a path, savez appends .npz to one that ends in .NPZ
                    np.savez(stream, **arrays)
            elif kind == ".safetensors":
                _import_safetensors(file).numpy.save_file(arrays, str(temporary))
            else:
                torch = _import_torch(file)
                tensors = {name: torch.from_numpy(value.copy()) for name, value in arrays.items()}
                torch.save({"model": tensors}, temporary)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or one_line(error)})") from None


def _import_torch(file: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise UserError(f"{file}: needs PyTorch; pip install torch, or use .safetensors or .npz") from None
    return torch


def _import_safetensors(file: Path) -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise UserError(f"{file}: needs safetensors; pip install safetensors, or use .npz") from None
    return safetensors
