"""Converts weight files of the authors' code (.pth, .safetensors, .npz) to checkpoints (.ckpt) and back."""

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
from focal.errors import UserError, one_line
from focal.files import atomic_write
from focal.models import create_model
from focal.models.layers import RANDOM_COUNTER

_WRAPPERS = ("model", "state_dict", "state_dict_ema")  # keys under which training scripts keep their weights


def read_official_weights(path: str) -> dict[str, np.ndarray]:
    """Arrays by official name from a .pth, .pt, .safetensors or .npz file. Nothing in the file is executed.

    Raises:
        UserError: the file does not exist, is of an unknown kind or damaged, or the package that reads it is missing.
    """
    file = Path(path)
    reader = _READERS[_kind_of(file)]
    if not file.is_file():
        raise UserError(f"{path}: no such file")
    state = reader(file)
    strange = [name for name, value in state.items() if value.dtype.kind not in "biuf"]
    if strange:
        raise UserError(f"{path}: {strange[0]} holds {state[strange[0]].dtype} instead of numbers")
    return state


def _kind_of(file: Path) -> str:
    kind = file.suffix.lower()
    if kind not in _READERS:
        raise UserError(f"{file}: unknown kind of weight file; known are {', '.join(_READERS)}")
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
    for wrapper in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
            break
    if not isinstance(loaded, Mapping) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise UserError(f"{file}: holds no state dict, neither bare nor under {', '.join(_WRAPPERS)}")
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
        arrays: dict[str, np.ndarray] = safetensors.load_file(file)
    except Exception as error:
        raise UserError(f"{file}: not a whole safetensors file ({one_line(error, 160)})") from None
    return arrays


def _read_npz(file: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # zip files, their compression and array headers each have their own exceptions
        raise UserError(f"{file}: not a whole npz file of plain arrays ({one_line(error, 160)})") from None


_READERS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    ".pth": _read_pth,
    ".pt": _read_pth,
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
}
OFFICIAL_KINDS = tuple(_READERS)


def write_official_weights(path: str, state: Mapping[str, np.ndarray]) -> None:
    """Write arrays by official name to .pth or .pt (under `model`, like the authors' files), .safetensors or .npz.

    Raises:
        UserError: the file is of an unknown kind or cannot be written, or the package that writes it is missing.
    """
    file = Path(path)
    kind = _kind_of(file)
    arrays = {name: np.ascontiguousarray(value) for name, value in state.items()}
    try:
        with atomic_write(file) as temporary:
            if kind == ".npz":
                with temporary.open("wb") as stream:  # given a path, savez appends .npz to one that ends in .NPZ
                    np.savez(stream, **arrays)
            elif kind == ".safetensors":
                _import_safetensors(file).save_file(arrays, str(temporary))
            else:
                torch = _import_torch(file)
                tensors = {name: torch.from_numpy(value.copy()) for name, value in arrays.items()}
                torch.save({"model": tensors}, temporary)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or one_line(error)})") from None


def convert_to_checkpoint(source: str, target: str, config: Config) -> list[str]:
    """Convert an official weight file to a checkpoint for `config`.

    Args:
        source: weight file of the authors' code. Its number of classes may differ from the network's. Its image size
            may differ, too, if it is the one that `arch` implies.
        target: the .ckpt file to write.
        config: describes the wanted network.

    Returns:
        A sentence for everything that was not taken over unchanged.

    Raises:
        UserError: entries are missing, unexpected or misshaped (all are named), or `target` cannot be written.
    """
    state = read_official_weights(source)
    network = create_model(config)
    made_for = settings_of_file(state, config)
    notes: list[str] = []
    if made_for != config:
        load_official_state_dict(create_model(made_for), state)  # the file itself must be whole
        state, notes = adapt_state(state, network)
    load_official_state_dict(network, state)
    tensors = {p.name: p.asnumpy() for p in network.get_parameters() if p.name != RANDOM_COUNTER}
    try:
        write_checkpoint(Path(target), tensors, None)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or one_line(error)})") from None
    return notes


def settings_of_file(state: Mapping[str, np.ndarray], config: Config) -> Config:
    """`config` with the number of classes and the image size that the weights were made for.

    A weight file does not state its image size: it is taken to be the configured one if all shapes agree, and otherwise
    the one that `arch` implies.
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

    The head and the bias tables that only the new size has are re-initialised, absolute positions are resampled, and
    all buffers, among them version 2's key indices, are those of the new size.

    Returns:
        The adapted state dict, and a sentence for every change.
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
            shape = "none" if value is None else tuple(value.shape)
            notes.append(f"{name} is re-initialised: the file has {shape}")
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
    height, width = hw
    side = int(round(embedding.shape[1] ** 0.5))
    grid = embedding.reshape(side, side, -1).astype(np.float32)  # (side, side, C)
    channels = [
        np.asarray(Image.fromarray(channel).resize((width, height), Image.Resampling.BICUBIC))
        for channel in np.moveaxis(grid, -1, 0)
    ]
    resampled: np.ndarray = np.stack(channels, -1)  # (H, W, C)
    return resampled.reshape(1, height * width, -1)


def convert_from_checkpoint(source: str, target: str, config: Config, use_ema: bool) -> None:
    """Write the weights of a checkpoint under official names, buffers included.

    Raises:
        UserError: `source` is not a whole checkpoint of this network, or `target` cannot be written.
    """
    network = create_model(config)
    assign_weights(network, read_weights(source, use_ema), source)
    write_official_weights(target, official_state_dict(network))


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
    return safetensors.numpy
