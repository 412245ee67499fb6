"""Loads weights into a network: all of them for evaluation and export, with a new head for fine-tuning."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Optional

import numpy as np
from mindspore import Parameter, Tensor, nn

from focal.checkpoint.files import EMA_PREFIX, Checkpoint, CheckpointError, read_checkpoint
from focal.checkpoint.official import KEY_INDICES, is_buffer, key_indices_of_other_maps, set_key_indices
from focal.checkpoint.resampling import resample_weights
from focal.errors import UserError
from focal.models.layers import RANDOM_COUNTER

logger = logging.getLogger("focal")

_HEAD = ("head.weight", "head.bias")
_SURROUNDING = ".relative_position_bias_table_to_neighbors"
_OF_STAGES = re.compile(r"layers\.\d+\.(blocks|downsample)\.")
_TRAINING_STATE = (EMA_PREFIX, "moment1.", "moment2.", "loss_scale.", "optimizer.", "schedule.")


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What `assign_weights` did, by parameter name.

    Attributes:
        loaded: parameters that were set, those that were resampled included.
        resampled: what had the size of another window or image.
        reinitialised: parameters of another shape, and key indices of another map, which keep their initial values.
        absent: parameters without weights, which keep their initial values.
        unexpected: weights without a parameter.
    """

    loaded: tuple[str, ...]
    resampled: tuple[str, ...]
    reinitialised: tuple[str, ...]
    absent: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{len(self.loaded)} tensors loaded"
        if self.resampled:
            text += f"; resampled bicubically for this image or window size: {name_some(self.resampled)}"
        if self.reinitialised:
            text += f"; left as initialised for this number of classes or image size: {name_some(self.reinitialised)}"
        if self.absent:
            text += f"; not among the weights and left as initialised: {name_some(self.absent)}"
        if self.unexpected:
            text += f"; not used: {name_some(self.unexpected)}"
        return text


def read_weights(path: str, use_ema: bool = False) -> dict[str, np.ndarray]:
    """Weights of a checkpoint file by official parameter name; see `select_weights`.

    Args:
        path: a checkpoint of train.py, or plain weights under official names (scripts/convert_weights.py).

    Raises:
        CheckpointError: the file does not exist, is not a whole checkpoint, or holds no EMA weights.
    """
    return select_weights(read_checkpoint(Path(path)), use_ema)


def select_weights(checkpoint: Checkpoint, use_ema: bool = False) -> dict[str, np.ndarray]:
    """Weights of a checkpoint by official parameter name, without optimizer state and counters.

    Args:
        use_ema: take the EMA weights; parameters without an average (frozen ones) are taken as they are.

    Raises:
        CheckpointError: there are no EMA weights.
    """
    path = checkpoint.path
    averages = {
        name[len(EMA_PREFIX) :]: value for name, value in checkpoint.tensors.items() if name.startswith(EMA_PREFIX)
    }
    if use_ema and not averages:
        raise CheckpointError(f"use_ema: {path} holds no EMA weights; set it to False")
    if checkpoint.meta is not None and checkpoint.meta.get("best_is_ema") and not use_ema:
        logger.warning("%s was kept for its EMA weights, but its raw weights are loaded; see --use_ema True", path)
    # Only files of our own trainings, which have metadata, hold optimizer state.
    state = () if checkpoint.meta is None else _TRAINING_STATE
    weights = {
        name: value
        for name, value in checkpoint.tensors.items()
        if name != RANDOM_COUNTER and not name.startswith(state)
    }
    return {**weights, **averages} if use_ema else weights


def assign_weights(
    network: nn.Cell, weights: Mapping[str, np.ndarray], source: str, new_head: bool = False, key: str = "pretrained"
) -> LoadReport:
    """Set the parameters of `network` by exact name.

    What has the size of another window or image is resampled (resampling.py). Version 2's key indices may be absent or
    belong to another window or image size; the network then keeps its own.

    Args:
        network: the network to fill.
        weights: arrays by official parameter name.
        source: where the weights come from, for messages.
        new_head: for fine-tuning: leave a head of another number of classes, or one without weights, as it was
            initialised, and likewise tables of surroundings in stages that had none at the other image size.
        key: the setting that names the source, for messages.

    Raises:
        UserError: a parameter of the network is missing or has another shape, or the weights have blocks or stages that
            the network has not; no parameter has been set then.
    """
    parameters = {p.name: p for p in network.get_parameters() if p.name != RANDOM_COUNTER}
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    weights, resampled = resample_weights(weights, shapes, map_of(network))
    missing = [name for name in parameters if name not in weights]
    misshaped = [name for name in parameters if name in weights and weights[name].shape != shapes[name]]
    reinitialised = [name for name in missing if KEY_INDICES in name]
    if hasattr(network, "layers"):
        reinitialised += key_indices_of_other_maps(network, weights)
    absent: list[str] = []
    if new_head:
        reinitialised += [name for name in _HEAD if name in misshaped]
        absent = _may_be_absent(missing, weights)
    unexpected = tuple(name for name in weights if name not in parameters)
    _refuse_misfits(
        [name for name in missing if name not in reinitialised and name not in absent],
        [_with_shapes(name, weights, parameters) for name in misshaped if name not in reinitialised],
        unexpected,
        f"{key}: {source}",
    )
    loaded = tuple(name for name in parameters if name in weights and name not in reinitialised)
    for name in loaded:
        parameters[name].set_data(Tensor(np.asarray(weights[name]), parameters[name].dtype))
    refresh_tables(network)
    return LoadReport(loaded, tuple(resampled), tuple(reinitialised), tuple(absent), unexpected)


def without_head(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights of everything but the classification head."""
    return {name: value for name, value in weights.items() if name not in _HEAD}


def map_of(network: nn.Cell) -> Optional[tuple[int, int]]:
    """Height and width in tokens of a network's first map; None if it has no stages."""
    if not hasattr(network, "layers"):
        return None
    return network.layers[0].height, network.layers[0].width


def _may_be_absent(missing: Sequence[str], weights: Mapping[str, np.ndarray]) -> list[str]:
    """Which missing parameters fine-tuning does without: a whole head, and a whole stage's tables of surroundings.

    A head or stage that has one of its parameters and lacks another is damaged.
    """
    absent = [] if any(name in weights for name in _HEAD) else [name for name in missing if name in _HEAD]
    for name in missing:
        stage = name.split("blocks.")[0]  # layers.3.
        if name.endswith(_SURROUNDING) and not any(
            other.startswith(stage) and other.endswith(_SURROUNDING) for other in weights
        ):
            absent.append(name)
    return absent


def _belongs_to_stages(name: str) -> bool:
    """Whether a network of another depth would have this parameter.

    Buffers and tables of surroundings do not count, as another image size can do without them.
    """
    return _OF_STAGES.match(name) is not None and not is_buffer(name) and not name.endswith(_SURROUNDING)


def _refuse_misfits(missing: Sequence[str], misshaped: Sequence[str], unexpected: Sequence[str], source: str) -> None:
    if not missing and not misshaped and not any(map(_belongs_to_stages, unexpected)):
        return
    unexpected = sorted(unexpected, key=_belongs_to_stages, reverse=True)  # those that are a reason to refuse first
    kinds = (("missing", missing), ("misshaped", misshaped), ("unexpected", unexpected))
    problems = "; ".join(f"{kind}: {name_some(names)}" for kind, names in kinds if names)
    raise UserError(f"{source} does not fit the network ({problems}); check arch, depths and image_size")


def _with_shapes(name: str, weights: Mapping[str, np.ndarray], parameters: Mapping[str, Parameter]) -> str:
    return f"{name} {tuple(weights[name].shape)} for {tuple(parameters[name].shape)}"


def name_some(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def refresh_tables(network: nn.Cell) -> None:
    """Rebuild what a network derives from parameters that have just been set: version 2's key tables."""
    if hasattr(network, "layers"):
        set_key_indices(network, {})


def load_weights(network: nn.Cell, path: str, use_ema: bool = False) -> None:
    """Fill the whole of `network` from a checkpoint file, for evaluation or export; see `assign_weights`."""
    load_checkpoint(network, read_checkpoint(Path(path)), use_ema)


def load_checkpoint(network: nn.Cell, checkpoint: Checkpoint, use_ema: bool = False) -> None:
    """As `load_weights`, from a checkpoint that has been read."""
    report = assign_weights(network, select_weights(checkpoint, use_ema), str(checkpoint.path))
    logger.info("%s (%s weights): %s", checkpoint.path, "EMA" if use_ema else "raw", report)


def freeze_stages(network: nn.Cell, stages: int) -> list[str]:
    """Freeze the stem and the first `stages` stages with their downsampling; returns the frozen parameters' names."""
    if not stages:
        return []
    prefixes = ("patch_embed.", "absolute_pos_embed", *(f"layers.{stage}." for stage in range(stages)))
    frozen = [parameter for parameter in network.trainable_params() if parameter.name.startswith(prefixes)]
    for parameter in frozen:
        parameter.requires_grad = False
    return [parameter.name for parameter in frozen]
