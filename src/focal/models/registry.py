"""Networks by configuration and by name."""

from __future__ import annotations

from mindspore import nn

from focal.config import Config
from focal.config.architectures import published_archs
from focal.models.focal_transformer import FocalTransformer
from focal.models.initialization import initialize


def create_model(config: Config) -> nn.Cell:
    """The network of `config.model`, in float32, with weights drawn from `config.run.seed`.

    Returns:
        A Cell: images (B, in_channels, H, W) -> logits (B, num_classes).

    Raises:
        ConfigError: settings that no network can have.
    """
    network = FocalTransformer(config.model, config.run.seed)
    initialize(network, config.run.seed)
    return network


def list_models() -> list[str]:
    """Names of the published models: each is an `arch` and has a file in configs/."""
    return published_archs()
