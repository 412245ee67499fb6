"""Weights of any kind of file, for networks that Python code builds (`focal.create_model`)."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Optional, Union

import numpy as np
from mindspore import nn

from focal.checkpoint.official import attention_heads, official_buffers
from focal.checkpoint.pdparams import orient_tables
from focal.checkpoint.weight_files import READERS, read_official_weights
from focal.checkpoint.weights import assign_weights, read_weights
from focal.config import Config, ConfigError
from focal.errors import UserError

logger = logging.getLogger("focal")

FilePath = Union[str, "os.PathLike[str]"]


def read_pretrained(path: FilePath, use_ema: bool = False) -> dict[str, np.ndarray]:
    """Weights by official name from a checkpoint (.ckpt) or from a file of the authors' code.

    Args:
        path: the file.
        use_ema: take the EMA weights of a checkpoint.

    Raises:
        UserError: the file does not exist, is damaged or of an unknown kind, or holds no EMA weights.
    """
    if not isinstance(path, (str, os.PathLike)):  # timm's pretrained=True downloads
        raise UserError(f"pretrained: {path!r} is not the path of a file; there are no weights to download from here")
    file = Path(path).expanduser()
    if file.suffix.lower() not in READERS:
        return read_weights(str(file), use_ema)
    if use_ema:
        raise UserError(f"use_ema: {file} is no checkpoint of train.py and holds no EMA weights; leave use_ema out")
    return read_official_weights(str(file))


def with_classes_of(weights: Mapping[str, np.ndarray], config: Config, source: str) -> Config:
    """`config` with the number of classes of the head among `weights`, if its own is -1.

    Raises:
        ConfigError: the weights have no head.
    """
    if config.model.num_classes != -1:
        return config
    classes = _classes_of(weights)
    if classes is None:
        raise ConfigError(f"num_classes: {source} has no head; give the number of classes, 0 for none")
    return dataclasses.replace(config, model=dataclasses.replace(config.model, num_classes=classes))


def _classes_of(weights: Mapping[str, np.ndarray]) -> Optional[int]:
    bias = weights.get("head.bias")
    return None if bias is None or bias.ndim != 1 else len(bias)


def load_pretrained(network: nn.Cell, weights: Mapping[str, np.ndarray], source: str) -> None:
    """Set the parameters of `network`, and log in one line what was loaded and what was not.

    A head of another number of classes is left as it was initialised.

    Args:
        network: from `focal.models.create_model`.
        weights: see `read_pretrained`; the buffers of the authors' modules may be among them.
        source: where the weights come from, for messages.

    Raises:
        UserError: the weights do not fit; nothing has been loaded then.
    """
    parameters, buffers = network.official_parameters, official_buffers(network)
    weights = {name: value for name, value in weights.items() if name in parameters or name not in buffers}
    if source.lower().endswith(".pdparams"):
        weights = orient_tables(weights, attention_heads(network))
    report = assign_weights(network, weights, source, new_head=True)
    if "head.weight" not in (*report.reinitialised, *report.absent):
        logger.info("pretrained %s: %s", source, report)
        return
    classes = _classes_of(weights)
    logger.warning(  # the network's answers mean nothing until this head has been trained
        "pretrained %s: %s; the head is new: the file has %s, the network %d classes",
        source, report, "none" if classes is None else classes, network.head.out_channels,
    )  # fmt: skip
