"""Focal Transformers as backbones for detection and segmentation."""

from __future__ import annotations

import dataclasses
from typing import Union

from mindspore import Tensor, nn

from focal.config import Config
from focal.models.focal_transformer import FocalTransformer
from focal.models.initialization import initialize
from focal.models.layers import LayerNorm


class FocalBackbone(nn.Cell):
    """Images (B, in_channels, H, W) -> four maps (B, C_i, H_i, W_i) at strides 4, 8, 16, 32.

    A map is what a stage hands to its downsampling, through a LayerNorm of its own (`norm0` ... `norm3`, fresh, to be
    trained with the task), as Swin's and the authors' detection code do. Parameters keep their official names.

    Args:
        network: a network without head.
    """

    def __init__(self, network: FocalTransformer) -> None:
        super().__init__(auto_prefix=False)  # with a prefix, checkpoints of classifiers would not fit `network`
        self.network = network
        for parameter in network.norm.get_parameters():
            parameter.requires_grad = False  # the classifier's last norm: here for checkpoints, but not run
        self.channels = tuple(stage.builder.dim for stage in network.layers)
        self.norms = nn.CellList([LayerNorm(channels) for channels in self.channels])
        for index, norm in enumerate(self.norms):
            norm.gamma.name, norm.beta.name = f"norm{index}.weight", f"norm{index}.bias"

    def construct(self, images: Tensor) -> tuple[Tensor, ...]:
        kept = self.network.split_drop_path(None, images.shape[0])
        x = self.network.embed(images)  # (B, H_0 * W_0, C_0)
        outputs = ()
        for index, stage in enumerate(self.network.layers):
            x = stage.run_blocks(x, kept[index])
            outputs += (stage.as_map(self.norms[index](x)),)  # (B, C_i, H_i, W_i)
            if stage.downsample is not None:
                x = stage.downsample(stage.as_map(x))
        return outputs


def create_backbone(config: Config, image_size: Union[int, tuple[int, int], None] = None) -> FocalBackbone:
    """A backbone for images of one size.

    Args:
        config: settings of the network; its head is left out.
        image_size: height and width in pixels; any, maps are padded to whole windows. None: the configured one.

    Load weights into `backbone.network` before another Cell takes the backbone in: `load_weights` of
    src/focal/checkpoint/weights.py, or `load_official_state_dict`. docs/models.md has the commands.

    Raises:
        ConfigError: the image is too small for the stages.
    """
    size = config.model.image_size if image_size is None else image_size
    model = dataclasses.replace(config.model, image_size=size, num_classes=0, pad_windows=True)
    network = FocalTransformer(model, config.run.seed)
    initialize(network, config.run.seed)
    return FocalBackbone(network)
