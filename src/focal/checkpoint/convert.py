"""Weight files of the authors' code (.pth, .safetensors, .npz) <-> checkpoints of this code (.ckpt)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Callable, Mapping

import numpy as np
from mindspore import nn
from PIL import Image

from focal.checkpoint.files import write_checkpoint
from focal.checkpoint.official import learnable_parameters, load_official_state_dict, official_state_dict
from focal.checkpoint.weights import assign_weights, read_weights
from focal.config import Config, load_config
from focal.config.architectures import published_archs
from focal.errors import UserError
from focal.models import create_model

_WRAPPERS = ("model", "state_dict", "state_dict_ema")  # keys under which training scripts keep their weights


def read_official_weights(path: str) -> dict[str, np.ndarray]:
    """Official names -> arrays from a .pth, .pt, .safetensors or .npz file. Nothing in the file is executed.

    Raises:
        UserError: no such file, an unknown kind, a damaged file, or the package that reads it is missing.
    """
    file = Path(path)
    reader = _READERS.get(file.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: unknown kind of weight file; known are {', '.join(_READERS)}")
    if not file.is_file():
        raise UserError(f"{path}: no such file")
    return reader(file)


def _read_pth(file: Path) -> dict[str, np.ndarray]:
    torch = _import_torch(file)
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{file}: PyTorch cannot read it as plain weights ({_first_line(error)}); a file that would "
            f"need to run code is refused"
        ) from None
    for wrapper in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
            break
    if not isinstance(loaded, Mapping) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise UserError(f"{file}: holds no state dict, neither bare nor under {', '.join(_WRAPPERS)}")
    try:
        # NumPy has no bfloat16, and our weights are float32 whatever the file's were.
        return {
            str(name): (v.float() if v.is_floating_point() else v).detach().resolve_conj().numpy()
            for name, v in loaded.items()
        }
    except (RuntimeError, TypeError, NotImplementedError) as error:  # sparse, on no device, ...
        raise UserError(f"{file}: holds a tensor that is no plain array ({_first_line(error)})") from None


def _read_safetensors(file: Path) -> dict[str, np.ndarray]:
    safetensors = _import_safetensors(file)
    try:
        return safetensors.load_file(file)
    except Exception as error:
        raise UserError(f"{file}: no whole safetensors file ({_first_line(error)})") from None


def _read_npz(file: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # of zip, of its compression, of the header of an array: each has its own
        raise UserError(f"{file}: no whole npz file of plain arrays ({_first_line(error)})") from None


_READERS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    ".pth": _read_pth,
    ".pt": _read_pth,
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
}


def write_official_weights(path: str, state: Mapping[str, np.ndarray]) -> None:
    """Write official names to .pth or .pt (under `model`, as the authors' files), .safetensors or .npz.

    Raises:
        UserError: an unknown kind, a place that cannot be written, or the package that writes it is missing.
    """
    file = Path(path)
    kind = file.suffix.lower()
    if kind not in _READERS:
        raise UserError(f"{path}: unknown kind of weight file; known are {', '.join(_READERS)}")
    arrays = {name: np.ascontiguousarray(value) for name, value in state.items()}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if kind == ".npz":
            with file.open("wb") as stream:  # given a name, savez appends .npz to one that ends in .NPZ
                np.savez(stream, **arrays)
        elif kind == ".safetensors":
            _import_safetensors(file).save_file(arrays, str(file))
        else:
            torch = _import_torch(file)
            torch.save({"model": {name: torch.from_numpy(value.copy()) for name, value in arrays.items()}}, file)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or _first_line(error)})") from None


def convert_to_checkpoint(source: str, target: str, config: Config) -> list[str]:
    """Convert an official weight file to a checkpoint for `config`.

    Args:
        source: weight file of the authors' code; its number of classes may differ from the network's, and so may its
            image size where it is the one that `arch` implies.
        target: .ckpt to write.
        config: the network wanted.

    Returns:
        What was not taken over as it is, a sentence each.

    Raises:
        UserError: entries that are missing, unexpected or misshaped, all by name; nothing is written then.
    """
    state = read_official_weights(source)
    strange = [name for name, value in state.items() if value.dtype.kind not in "biuf"]
    if strange:
        raise UserError(f"{source}: {strange[0]} holds no numbers, but {state[strange[0]].dtype}")
    network = create_model(config)
    made_for = settings_of_file(state, config)
    notes: list[str] = []
    if made_for != config:
        load_official_state_dict(create_model(made_for), state)  # the file itself must be whole
        state, notes = adapt_state(state, network)
    load_official_state_dict(network, state)
    tensors = {p.name: p.asnumpy() for p in network.get_parameters() if p.name != "random_counter"}
    try:
        write_checkpoint(Path(target), tensors, None)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or _first_line(error)})") from None
    return notes


def settings_of_file(state: Mapping[str, np.ndarray], config: Config) -> Config:
    """`config` with the number of classes and the image size that the file was made for.

    The file names no image size: it is taken to be the configured one if all shapes agree, else what `arch` implies.
    """
    head = state.get("head.weight")
    classes = config.model.num_classes if head is None or not head.shape else int(head.shape[0])
    same_size = dataclasses.replace(config, model=dataclasses.replace(config.model, num_classes=classes))
    if config.model.arch not in published_archs():
        return same_size
    network = create_model(same_size)
    expected, needed = official_state_dict(network), learnable_parameters(network)
    fits = all(name in expected and value.shape == expected[name].shape for name, value in state.items())
    if fits and needed.keys() <= state.keys():
        return same_size
    size = load_config({"arch": config.model.arch}).model.image_size
    return dataclasses.replace(same_size, model=dataclasses.replace(same_size.model, image_size=size))


def adapt_state(state: Mapping[str, np.ndarray], network: nn.Cell) -> tuple[dict[str, np.ndarray], list[str]]:
    """Fit a whole official state dict to a network of another number of classes or image size.

    The head starts anew, absolute positions are resampled, tables that the other size needs besides start anew, and all
    buffers, version 2's key indices among them, are those of the new size.
    """
    ours = official_state_dict(network)
    learnable = learnable_parameters(network)
    adapted, notes = {}, []
    for name in learnable:
        value = state.get(name)
        if value is not None and tuple(value.shape) == ours[name].shape:
            adapted[name] = value
        elif name == "absolute_pos_embed" and value is not None:
            height, width = network.layers[0].height, network.layers[0].width
            adapted[name] = resample_positions(value, (height, width))
            notes.append(f"{name} resampled to {height} x {width} tokens")
        else:
            adapted[name] = ours[name]
            notes.append(f"{name} starts anew: the file has {'none' if value is None else tuple(value.shape)}")
    dropped = [name for name in state if name not in ours and name.startswith("head.")]
    if dropped:
        notes.append(f"{' and '.join(dropped)} left out: this network has no head")
    theirs = {name: state[name] for name in ours if name not in learnable and name in state}
    rebuilt = [name for name, value in theirs.items() if tuple(value.shape) != ours[name].shape]
    if not rebuilt:
        return {**adapted, **theirs}, notes
    notes.append(f"{len(rebuilt)} buffers rebuilt for this image size, e.g. {rebuilt[0]}")
    return adapted, notes


def resample_positions(embedding: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """Absolute position embedding (1, N, C) of a square map, resampled bicubically to (1, H * W, C)."""
    side = int(round(embedding.shape[1] ** 0.5))
    grid = embedding.reshape(side, side, -1).astype(np.float32)
    channels = [
        np.asarray(Image.fromarray(grid[:, :, c]).resize((hw[1], hw[0]), Image.BICUBIC)) for c in range(grid.shape[2])
    ]
    return np.stack(channels, -1).reshape(1, hw[0] * hw[1], -1)


def convert_from_checkpoint(source: str, target: str, config: Config, use_ema: bool) -> None:
    """Write the weights of one of our checkpoints under official names, buffers included.

    Raises:
        UserError: no whole checkpoint, or one of another network.
    """
    network = create_model(config)
    assign_weights(network, read_weights(source, use_ema), source)
    write_official_weights(target, official_state_dict(network))


def _import_torch(file: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{file}: {file.suffix} needs PyTorch; pip install torch, or use .safetensors or .npz"
        ) from None
    return torch


def _import_safetensors(file: Path) -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise UserError(f"{file}: needs safetensors; pip install safetensors, or use .npz") from None
    return safetensors.numpy


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
