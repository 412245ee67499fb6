"""Focal Transformers on MindSpore: `load_config`, `create_model`, `list_models`.

Importing this package imports neither NumPy nor MindSpore; the functions do when they are called.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Optional, Union

from focal.config import Config, ConfigError, load_config
from focal.config.loading import all_keys
from focal.config.schema import ModelConfig

if TYPE_CHECKING:
    from mindspore import nn

__all__ = ["Config", "ConfigError", "create_model", "list_models", "load_config"]


def create_model(
    config: Union[Config, str],
    *,
    pretrained: Union[str, os.PathLike[str], Literal[False], None] = None,
    use_ema: bool = False,
    features_only: bool = False,
    out_indices: Optional[Sequence[int]] = None,
    **overrides: Any,
) -> nn.Cell:
    """The network that a configuration describes, in float32, initialised from its seed or with weights from a file.

    Args:
        config: a configuration, or the name of a published model (see `list_models`). The `pretrained` and `use_ema` of
            a configuration are for training and are not read here.
        pretrained: a checkpoint (.ckpt), or a file of the authors' code, as scripts/convert_weights.py reads them. If
            `num_classes` is not the file's, the head keeps its initial values, which a warning says. A name without
            `num_classes`, or num_classes -1, takes as many classes as the file has. False is None, as in timm; there
            is no True, since nothing is downloaded.
        use_ema: load the checkpoint's EMA weights.
        features_only: return a backbone instead, images -> maps (B, C_i, H_i, W_i); see
            `focal.models.backbone.FocalBackbone`.
        out_indices: with `features_only`, the stages whose maps are returned, for example (1, 2, 3); all by default.
        overrides: keys of the network to change, or `seed`, with a name only: `create_model(name, num_classes=10)`.

    Returns:
        A Cell: images (B, in_channels, H, W) float32 -> logits (B, num_classes). Its method `reset_head(num_classes)`
        replaces the head.

    Raises:
        ConfigError: an unknown name or key, a key that does not shape the network, or settings that none can have.
        UserError: the file of weights does not exist, cannot be read or does not fit the network.
    """
    pretrained = None if pretrained is False else pretrained
    _check_arguments(pretrained, use_ema, features_only, out_indices, overrides)
    if isinstance(config, str):
        if pretrained is not None and not features_only:
            overrides.setdefault("num_classes", -1)
        config = load_config({"arch": config}, overrides)
    elif overrides:
        raise ConfigError(f"create_model: {', '.join(overrides)}: give changes to load_config, or a name instead")
    from focal import models
    from focal.checkpoint.pretrained import load_pretrained, read_pretrained, with_classes_of

    weights = None if pretrained is None else read_pretrained(pretrained, use_ema)
    if features_only:
        backbone = models.create_backbone(config, out_indices=out_indices)
        if weights is not None:
            load_pretrained(backbone.network, weights, str(pretrained))
        return backbone
    if weights is None:
        return models.create_model(config)
    network = models.create_model(with_classes_of(weights, config, str(pretrained)))
    load_pretrained(network, weights, str(pretrained))
    return network


def _check_arguments(
    pretrained: object, use_ema: bool, features_only: bool, out_indices: object, overrides: Mapping[str, Any]
) -> None:
    """Refuse arguments of `create_model` that would have no effect."""
    if use_ema and pretrained is None:
        raise ConfigError("use_ema: True needs pretrained, the checkpoint whose EMA weights are meant")
    if out_indices is not None and not features_only:
        raise ConfigError(f"out_indices: {out_indices!r} needs features_only=True; a classifier returns logits")
    if features_only and overrides.get("num_classes"):
        raise ConfigError(f"num_classes: {overrides['num_classes']!r}: with features_only=True there is no head")
    of_network = {field.name for field in dataclasses.fields(ModelConfig)} | {"seed"}
    for name in overrides:
        if name in all_keys() and name not in of_network:
            raise ConfigError(f"{name}: does not shape the network; give it to load_config, for a training")


def list_models(filter: Union[str, Sequence[str]] = "*") -> list[str]:
    """Names of the published models; each is an `arch` and has a file in configs/.

    Args:
        filter: a pattern, or several of which one must match, with the wildcards of a shell: `focalv2*`.
    """
    from focal.config.architectures import published_archs

    patterns = [filter] if isinstance(filter, str) else filter
    return [name for name in published_archs() if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
