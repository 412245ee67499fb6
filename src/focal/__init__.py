"""Focal Transformers on MindSpore: `load_config`, `create_model`, `list_models`.

Importing this package imports neither NumPy nor MindSpore; the functions do when they are called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Union

from focal.config import Config, ConfigError, load_config

if TYPE_CHECKING:
    from mindspore import nn

__all__ = ["Config", "ConfigError", "create_model", "list_models", "load_config"]


def create_model(config: Union[Config, str], **overrides: Any) -> nn.Cell:
    """The network that a configuration describes, in float32, initialised from its seed.

    Args:
        config: a configuration, or the name of a published model (see `list_models`).
        overrides: configuration keys to change, with a name only: `create_model(name, num_classes=10)`.

    Returns:
        A Cell: images (B, in_channels, H, W) float32 -> logits (B, num_classes).

    Raises:
        ConfigError: an unknown name or key, or settings that no network can have.
    """
    from focal import models

    if isinstance(config, str):
        return models.create_model(load_config({"arch": config}, overrides))
    if overrides:
        raise ConfigError(f"create_model: {', '.join(overrides)}: give changes to load_config, or a name instead")
    return models.create_model(config)


def list_models() -> list[str]:
    """Names of the published models; each is an `arch` and has a file in configs/."""
    from focal.config.architectures import published_archs

    return published_archs()
