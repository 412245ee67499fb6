"""Converts weights of the authors' code, in files of weight_files.py, to checkpoints (.ckpt) and back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Mapping

import numpy as np
from mindspore import nn

from focal.checkpoint.files import write_checkpoint
from focal.checkpoint.official import (
    attention_heads,
    is_buffer,
    key_indices_of_other_maps,
    learnable_parameters,
    load_official_state_dict,
    official_state_dict,
)
from focal.checkpoint.pdparams import orient_tables
from focal.checkpoint.resampling import resample_weights
from focal.checkpoint.weight_files import read_official_weights, write_official_weights
from focal.checkpoint.weights import assign_weights, map_of, name_some, read_weights
from focal.config import Config, load_config
from focal.config.architectures import published_archs
from focal.errors import UserError, one_line
from focal.models import create_model
from focal.models.layers import RANDOM_COUNTER


def convert_to_checkpoint(source: str, target: str, config: Config) -> list[str]:
    """Convert an official weight file to a checkpoint for `config`.

    Args:
        source: weight file of the authors' code or of PaddleViT. Its number of classes may differ from the network's.
            Its image and window size may differ, too, if they are those that `arch` implies, as a published name does.
        target: the .ckpt file to write.
        config: describes the wanted network.

    Returns:
        A sentence for everything that was not taken over unchanged.

    Raises:
        UserError: entries are missing, unexpected or misshaped (all are named), or `target` cannot be written.
    """
    state = read_official_weights(source)
    network = create_model(config)
    if Path(source).suffix.lower() == ".pdparams":
        state = orient_tables(state, attention_heads(network))
    made_for = settings_of_file(state, config)
    notes: list[str] = []
    if made_for != config:
        _load_whole(create_model(made_for), state, config)  # the file itself must be whole
        state, notes = adapt_state(state, network)
    foreign = key_indices_of_other_maps(network, state)
    if foreign:
        state = {name: value for name, value in state.items() if name not in foreign}
        notes.append(f"{name_some(foreign)}: chosen by this program, as the file's belong to another map")
    _load_whole(network, state, config)
    tensors = {p.name: p.asnumpy() for p in network.get_parameters() if p.name != RANDOM_COUNTER}
    try:
        write_checkpoint(Path(target), tensors, None)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or one_line(error)})") from None
    return notes


def _load_whole(network: nn.Cell, state: Mapping[str, np.ndarray], config: Config) -> None:
    try:
        load_official_state_dict(network, state)
    except UserError as error:
        if config.model.arch in published_archs():
            raise
        raise UserError(
            f"{error}; if the file is of another image_size or window_size, which only published archs tell, convert "
            "it with its own: what loads the checkpoint resamples it"
        ) from None


def settings_of_file(state: Mapping[str, np.ndarray], config: Config) -> Config:
    """`config` with the number of classes, the image size and the window size that the weights were made for.

    A weight file does not state its sizes: they are taken to be the configured ones if all shapes agree, and otherwise
    those that `arch` implies.
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
    implied = load_config({"arch": config.model.arch}).model
    model = dataclasses.replace(same_size.model, image_size=implied.image_size, window_size=implied.window_size)
    return dataclasses.replace(same_size, model=model)


def adapt_state(state: Mapping[str, np.ndarray], network: nn.Cell) -> tuple[dict[str, np.ndarray], list[str]]:
    """Fit a whole official state dict to a network of another number of classes, image size or window size.

    What has the size of a window or image is resampled (resampling.py). The head and the bias tables that only the new
    size has are re-initialised, and all buffers, among them version 2's key indices, are those of the new size.

    Returns:
        The adapted state dict, and a sentence for every change.
    """
    ours = official_state_dict(network)
    learnable = learnable_parameters(network)
    shapes = {name: ours[name].shape for name in learnable}
    state, resampled = resample_weights(state, shapes, map_of(network))
    adapted: dict[str, np.ndarray] = {}
    notes = [f"resampled bicubically for these image and window sizes: {name_some(resampled)}"] if resampled else []
    for name in learnable:
        value = state.get(name)
        if value is not None and tuple(value.shape) == ours[name].shape:
            adapted[name] = value
        else:
            adapted[name] = ours[name]
            shape = "none" if value is None else tuple(value.shape)
            notes.append(f"{name} is re-initialised: the file has {shape}")
    dropped = [name for name in state if name not in ours and not is_buffer(name)]
    heads = [name for name in dropped if name.startswith("head.")]
    if heads:
        notes.append(f"{' and '.join(heads)} left out: this network has no head")
    notes += [f"{name} left out: a map of this size has no such table" for name in dropped if name not in heads]
    theirs = {name: state[name] for name in ours if name not in learnable and name in state}
    rebuilt = [name for name, value in theirs.items() if tuple(value.shape) != ours[name].shape]
    if not rebuilt:
        return {**adapted, **theirs}, notes
    notes.append(f"{len(rebuilt)} buffers rebuilt for this image size, e.g. {rebuilt[0]}")
    return adapted, notes


def convert_from_checkpoint(source: str, target: str, config: Config, use_ema: bool) -> list[str]:
    """Write the weights of a checkpoint under official names, buffers included.

    Returns:
        A sentence for everything that was not taken over unchanged.

    Raises:
        UserError: `source` is not a whole checkpoint of this network, or `target` cannot be written.
    """
    network = create_model(config)
    report = assign_weights(network, read_weights(source, use_ema), source, key="from")
    write_official_weights(target, official_state_dict(network))
    return [str(report)] if report.resampled else []
