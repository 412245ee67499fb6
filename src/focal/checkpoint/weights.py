"""Loading weights into a network: for evaluation and export exactly, for fine-tuning with a new head."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
from mindspore import Tensor, nn

from focal.checkpoint.files import Checkpoint, CheckpointError, read_checkpoint
from focal.checkpoint.official import set_key_indices
from focal.errors import UserError
from focal.trainers.ema import PREFIX

logger = logging.getLogger("focal")

_HEAD = ("head.weight", "head.bias")
_NOT_WEIGHTS = ("random_counter",)  # belongs to a training, not to its result
_KEY_INDICES = ".topk_cloest_indice_"  # version 2: which of equally close tokens are keys; of one image size


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What `assign_weights` did, by parameter name."""

    loaded: tuple[str, ...]
    reinitialised: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{len(self.loaded)} tensors loaded"
        if self.reinitialised:
            text += f"; left as initialised for this number of classes or image size: {_shorten(self.reinitialised)}"
        if self.unexpected:
            text += f"; not used: {_shorten(self.unexpected)}"
        return text


def read_weights(path: str, use_ema: bool = False) -> dict[str, np.ndarray]:
    """Weights of a checkpoint by official parameter name.

    Args:
        path: a checkpoint of train.py, or plain weights under official names (scripts/convert_weights.py).
        use_ema: the averaged weights; parameters that have no average (frozen ones) come as they are.

    Raises:
        CheckpointError: no such file, not a whole checkpoint, or no averaged weights in it.
    """
    checkpoint = read_checkpoint(Path(path))
    averages = {name[len(PREFIX) + 1 :]: value for name, value in checkpoint.tensors.items() if _is_average(name)}
    if use_ema and not averages:
        raise CheckpointError(f"use_ema: {path} holds no averaged weights; set it to False")
    if (checkpoint.meta or {}).get("best_is_ema") and not use_ema:
        logger.warning("%s was kept for its averaged weights; --use_ema True takes them, this takes the raw ones", path)
    weights = {name: value for name, value in checkpoint.tensors.items() if not _is_state(name, checkpoint)}
    return {**weights, **averages} if use_ema else weights


def _is_average(name: str) -> bool:
    return name.startswith(PREFIX + ".")


def _is_state(name: str, checkpoint: Checkpoint) -> bool:
    """Whether an entry is optimizer state and the like; only our own files (with metadata) hold any."""
    prefixes = (PREFIX + ".", "moment1.", "moment2.", "loss_scale.", "optimizer.", "schedule.")
    return name in _NOT_WEIGHTS or (checkpoint.meta is not None and name.startswith(prefixes))


def assign_weights(network: nn.Cell, weights: dict[str, np.ndarray], source: str, new_head: bool = False) -> LoadReport:
    """Set the parameters of `network` by exact name.

    Args:
        network: what to fill.
        weights: arrays by official parameter name.
        source: where they came from, for messages.
        new_head: leave a head of another number of classes as it was initialised, instead of refusing.

    Version 2's key indices may be absent or of another image size; the network then keeps its own.

    Raises:
        UserError: a parameter of the network is missing or has another shape.
    """
    parameters = {p.name: p for p in network.get_parameters() if p.name not in _NOT_WEIGHTS}
    missing = [name for name in parameters if name not in weights]
    misshaped = [name for name in parameters if name in weights and weights[name].shape != parameters[name].shape]
    reinitialised = [name for name in (*missing, *misshaped) if _KEY_INDICES in name]
    if new_head:
        reinitialised += [name for name in _HEAD if name in misshaped or name in missing]
    problems = []
    for kind, names in (("missing", missing), ("misshaped", misshaped)):
        names = [name for name in names if name not in reinitialised]
        if names:
            problems.append(f"{kind}: {_shorten([_with_shapes(name, weights, parameters) for name in names])}")
    unexpected = tuple(name for name in weights if name not in parameters)
    if problems:
        if unexpected:
            problems.append(f"unexpected: {_shorten(unexpected)}")
        raise UserError(
            f"pretrained: {source} does not fit the network ({'; '.join(problems)}); check arch and image_size"
        )
    loaded = tuple(name for name in parameters if name in weights and name not in reinitialised)
    for name in loaded:
        parameters[name].set_data(Tensor(np.asarray(weights[name]), parameters[name].dtype))
    refresh_tables(network)
    return LoadReport(loaded, tuple(reinitialised), unexpected)


def refresh_tables(network: nn.Cell) -> None:
    """Rebuild what a network derived from parameters that have just been set (version 2's key tables)."""
    if hasattr(network, "layers"):
        set_key_indices(network, {})


def _with_shapes(name: str, weights: dict, parameters: dict) -> str:
    if name not in weights:
        return name
    return f"{name} {tuple(weights[name].shape)} for {tuple(parameters[name].shape)}"


def _shorten(names: object, most: int = 5) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def load_weights(network: nn.Cell, path: str, use_ema: bool = False) -> None:
    """Fill `network` for evaluation or export from a checkpoint, exactly; see `read_weights`, `assign_weights`."""
    report = assign_weights(network, read_weights(path, use_ema), path)
    logger.info("%s (%s weights): %s", path, "averaged" if use_ema else "raw", report)


def freeze_stages(network: nn.Cell, stages: int) -> list[str]:
    """Freeze the stem and the first `stages` stages, downsampling included; returns names of frozen parameters."""
    if not stages:
        return []
    prefixes = ("patch_embed.", "absolute_pos_embed", *(f"layers.{stage}." for stage in range(stages)))
    frozen = [parameter for parameter in network.trainable_params() if parameter.name.startswith(prefixes)]
    for parameter in frozen:
        parameter.requires_grad = False
    return [parameter.name for parameter in frozen]
