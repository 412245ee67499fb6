"""The teacher of a distillation: a Focal Transformer that the training step asks and never changes."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any, Optional

from mindspore import nn

from focal.checkpoint.class_names import ClassNames, check_class_names, class_names_of
from focal.checkpoint.files import Checkpoint, CheckpointError, read_checkpoint
from focal.checkpoint.weights import assign_weights, select_weights
from focal.config import Config, ConfigError, load_config, to_flat_dict
from focal.config.architectures import published_archs
from focal.config.schema import ModelConfig
from focal.files import crc32_of
from focal.models import create_model
from focal.models.inference import prepare_for_evaluation

logger = logging.getLogger("focal")

TEACHER = "teacher."  # starts the name of each of its parameters in the training step
_MODEL_KEYS = tuple(field.name for field in dataclasses.fields(ModelConfig))
# Keys of the student that hold for the teacher as well, since both see the same images.
_SHARED = ("image_size", "num_classes", "in_channels")
# Of every teacher: nothing is dropped, and maps of any size are padded to whole windows, which changes no other map.
_FIXED = {"drop_rate": 0.0, "attn_drop_rate": 0.0, "drop_path_rate": 0.0, "recompute": False, "pad_windows": True}
_WINDOW_TABLE = "layers.0.blocks.0.attn.relative_position_bias_table"  # of version 1, ((2 * window - 1)^2, heads)


def build_teacher(config: Config, class_names: ClassNames = None) -> Optional[nn.Cell]:
    """The network in `teacher`, in evaluation mode and this training's precision; None without distillation.

    Its weights are the EMA weights if the checkpoint was kept for them (best.ckpt), else the raw ones.

    Args:
        config: of the student.
        class_names: of the training data.

    Raises:
        UserError: the checkpoint cannot be read, is of another network or of other classes, or saw other images.
    """
    if config.step.distillation == "none" or config.run.teacher is None:
        return None
    checkpoint = _read(Path(config.run.teacher))
    saved = (checkpoint.meta or {}).get("config", {})
    _check_images(checkpoint, saved, config)
    names = class_names_of(checkpoint.meta)
    check_class_names("teacher", checkpoint.path, names, class_names, config.run.allow_config_change)
    use_ema = bool((checkpoint.meta or {}).get("best_is_ema"))
    weights = select_weights(checkpoint, use_ema)
    _check_classes(checkpoint, weights, config)

    keys = _model_keys(checkpoint, weights, saved, config)
    try:
        network = create_model(load_config(keys))
    except ConfigError as error:
        raise ConfigError(f"teacher: {checkpoint.path} does not fit this training: {error}") from None
    report = assign_weights(network, weights, str(checkpoint.path), key="teacher")
    kind = "EMA" if use_ema else "raw"
    logger.info("teacher %s (CRC-32 %08x, %s weights): %s", checkpoint.path, crc32_of(checkpoint.path), kind, report)
    prepare_for_evaluation(network, config.step)
    for parameter in network.get_parameters():
        parameter.requires_grad = False
        parameter.name = TEACHER + parameter.name  # the student's have the same names
    return network


def _read(path: Path) -> Checkpoint:
    try:
        return read_checkpoint(path)
    except CheckpointError as error:
        raise CheckpointError(f"teacher: {str(error).removeprefix('checkpoint: ')}") from None


def _model_keys(
    checkpoint: Checkpoint, weights: dict[str, Any], saved: dict[str, Any], config: Config
) -> dict[str, Any]:
    """Flat keys of the teacher's network: as its checkpoint says, else those of the published model `teacher_arch`.

    The window of a published version 1 is that of the weights, which may have been trained at another image size.
    """
    arch, student = config.run.teacher_arch, to_flat_dict(config)
    shared = {**{name: student[name] for name in _SHARED}, **_FIXED}
    if saved:
        if arch not in (None, saved["arch"]):
            raise ConfigError(f"teacher_arch: {arch}, but {checkpoint.path} holds {saved['arch']}; omit teacher_arch")
        return {**{name: saved[name] for name in _MODEL_KEYS if name in saved}, **shared}
    if arch not in published_archs():
        raise ConfigError(
            f"teacher_arch: {checkpoint.path} does not say which network it holds, and {arch} is not a published "
            "model; give the name of one, see scripts/list_models.py"
        )
    if _WINDOW_TABLE in weights:
        shared["window_size"] = (math.isqrt(len(weights[_WINDOW_TABLE])) + 1) // 2
    return {"arch": arch, **shared}


def _check_images(checkpoint: Checkpoint, saved: dict[str, Any], config: Config) -> None:
    """The teacher is given the student's images, so it must have learnt from images that were normalised alike."""
    student = to_flat_dict(config)
    for name in ("image_mean", "image_std", "in_channels"):
        if name in saved and saved[name] != student[name]:
            raise ConfigError(f"teacher: {checkpoint.path} has {name} {saved[name]}, but this training {student[name]}")


def _check_classes(checkpoint: Checkpoint, weights: dict[str, Any], config: Config) -> None:
    head = weights.get("head.weight")
    classes = 0 if head is None else head.shape[0]
    if classes != config.model.num_classes:
        raise ConfigError(
            f"teacher: {checkpoint.path} has {classes} classes, but num_classes is {config.model.num_classes}; a "
            "teacher must know the same classes"
        )
