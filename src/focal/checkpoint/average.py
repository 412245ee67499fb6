"""The arithmetic mean of several checkpoints' weights, as timm's avg_checkpoints.py makes it.

It pays for checkpoints of one training, or of trainings that started from the same weights; the mean of networks that
were trained from different random weights is worth nothing, and nothing here can tell.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from focal.checkpoint.class_names import class_name_difference, class_names_of
from focal.checkpoint.files import Checkpoint, CheckpointError, read_checkpoint
from focal.checkpoint.weights import select_weights
from focal.config import ConfigError
from focal.config.schema import ModelConfig

# Model settings that do not change what trained weights compute.
_TRAINING_ONLY = ("drop_rate", "attn_drop_rate", "drop_path_rate", "layerscale_value", "recompute", "num_classes")
_NETWORK_KEYS = (
    *(field.name for field in dataclasses.fields(ModelConfig) if field.name not in _TRAINING_ONLY),
    "image_mean",
    "image_std",
)


def average_checkpoints(paths: Sequence[Path], use_ema: bool = False) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read checkpoints and average their weights in float64.

    Args:
        paths: two or more checkpoints of the same network and classes.
        use_ema: average the EMA weights.

    Returns:
        The mean weights by official name, in the format of the first file, and metadata: settings, class names, and
        the files that were averaged.

    Raises:
        ConfigError: there are fewer than two, or they differ in network, classes, or tensors that have no mean.
        CheckpointError: one cannot be read, or has no EMA weights.
    """
    if len(paths) < 2:
        raise ConfigError(f"files: {len(paths)} given; a mean needs two or more checkpoints")
    first = read_checkpoint(paths[0])
    weights = select_weights(first, use_ema)
    sums = {name: value.astype(np.float64) for name, value in weights.items() if _has_mean(value)}
    for path in paths[1:]:  # one at a time: a Base network with its optimizer is a gigabyte
        checkpoint = read_checkpoint(path)
        others = select_weights(checkpoint, use_ema)
        _check_same_network(first, checkpoint)
        _check_same_tensors(first.path, weights, path, others)
        for name, total in sums.items():
            total += others[name]
    means = {name: total / len(paths) for name, total in sums.items()}
    averaged = {name: means[name].astype(value.dtype) if name in means else value for name, value in weights.items()}
    return averaged, _meta(first, paths, use_ema)


def best_checkpoints(paths: Sequence[Path], count: int, use_ema: bool = False) -> list[Path]:
    """The `count` checkpoints of highest top-1, best first, of the raw or the EMA weights.

    Raises:
        ConfigError: there are not `count` files, or it is less than two.
        CheckpointError: one cannot be read, or does not say its accuracy, which only those in best/ do.
    """
    if not 2 <= count <= len(paths):
        if len(paths) < 2:
            raise ConfigError(f"best: {count} of {len(paths)} files; a mean needs two or more checkpoints")
        raise ConfigError(f"best: {count} of {len(paths)} files; give 2 to {len(paths)}")
    return sorted(paths, key=lambda path: _top1(path, use_ema), reverse=True)[:count]


def _top1(path: Path, use_ema: bool) -> float:
    name = "ema_top1" if use_ema else "top1"
    accuracy = (read_checkpoint(path).meta or {}).get("accuracy", {})
    if name not in accuracy:
        raise CheckpointError(f"best: {path} does not say its {name}, as those in best/ do; name the files yourself")
    return float(accuracy[name])


def _has_mean(value: np.ndarray) -> bool:
    return np.issubdtype(value.dtype, np.floating)


def _check_same_network(first: Checkpoint, other: Checkpoint) -> None:
    saved, present = ((checkpoint.meta or {}).get("config", {}) for checkpoint in (first, other))
    for name in _NETWORK_KEYS:
        if name in saved and name in present and saved[name] != present[name]:
            raise ConfigError(
                f"files: {other.path} is of another network than {first.path}: {name} {present[name]}, "
                f"not {saved[name]}"
            )
    difference = class_name_difference(class_names_of(first.meta), class_names_of(other.meta))
    if difference is not None:
        raise ConfigError(f"files: the class names in {other.path} differ from those in {first.path}: {difference}")


def _check_same_tensors(
    first: Path, weights: Mapping[str, np.ndarray], path: Path, others: Mapping[str, np.ndarray]
) -> None:
    unlike = sorted(weights.keys() ^ others.keys())
    if unlike:
        raise ConfigError(f"files: {path} is of another network than {first}: only one of them has {unlike[0]}")
    for name, value in weights.items():
        other = others[name]
        if other.shape != value.shape:
            raise ConfigError(f"files: {name} is {other.shape} in {path}, but {value.shape} in {first}")
        if not _has_mean(value) and not np.array_equal(other, value):
            raise ConfigError(f"files: {name}, which is not averaged, differs between {path} and {first}")


def _meta(first: Checkpoint, paths: Sequence[Path], use_ema: bool) -> dict[str, Any]:
    kept = {name: first.meta[name] for name in ("config", "class_names") if name in first.meta} if first.meta else {}
    return {**kept, "averaged": [path.name for path in paths], "averaged_ema": use_ema}
