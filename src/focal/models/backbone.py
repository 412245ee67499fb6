"""Focal Transformers as backbones for detection and segmentation."""

from __future__ import annotations

import dataclasses
from typing import Union

from mindspore import Tensor, nn

from focal.config import Config
from focal.models.ascend_forms import LayerNorm
from focal.models.focal_transformer import FocalTransformer, create_model


class FocalBackbone(nn.Cell):
    """Images (B, in_channels, H, W) -> four maps (B, C_i, H_i, W_i) at strides 4, 8, 16, 32.

    Each map is the input of a stage's downsampling after a LayerNorm for this map (`norm0` ... `norm3`, newly
    initialised, to be trained with the task), as in Swin's and the authors' detection code. Parameters keep their
    official names.

    Args:
        network: a network without head.
    """

    def __init__(self, network: FocalTransformer) -> None:
        super().__init__(auto_prefix=False)  # with a prefix, checkpoints of classifiers would not fit `network`
        self.network = network
        for parameter in network.norm.get_parameters():
            parameter.requires_grad = False  # the classifier's last norm: kept for checkpoints, but not run
        self.channels = tuple(stage.settings.channels for stage in network.layers)
        self.norms = nn.CellList([LayerNorm(channels) for channels in self.channels])
        for index, norm in enumerate(self.norms):
            norm.gamma.name, norm.beta.name = f"norm{index}.weight", f"norm{index}.bias"

    def construct(self, images: Tensor) -> tuple[Tensor, ...]:
        factors = self.network.split_drop_path(None, images.shape[0])
        x = self.network.embed(images)  # (B, H_0 * W_0, C_0)
        outputs: tuple[Tensor, ...] = ()
        for index, stage in enumerate(self.network.layers):
            x = stage.run_blocks(x, factors[index])
            outputs += (stage.as_map(self.norms[index](x)),)  # (B, C_i, H_i, W_i)
            if stage.downsample is not None:
                x = stage.downsample(stage.as_map(x))
        return outputs


def create_backbone(config: Config, image_size: Union[int, tuple[int, int], None] = None) -> FocalBackbone:
    """A backbone for images of one size.

    Load weights into `backbone.network` before another Cell takes the backbone in: `load_weights` of
    focal/checkpoint/weights.py, or `load_official_state_dict`. docs/models.md has the commands.

    Args:
        config: settings of the network; its head is left out.
        image_size: height and width in pixels; any are possible, as maps are padded to whole windows. None: the
            configured size.

    Raises:
        ConfigError: the image is too small for the stages.
    """
    size = config.model.image_size if image_size is None else image_size
    model = dataclasses.replace(config.model, image_size=size, num_classes=0, pad_windows=True)
    return FocalBackbone(create_model(dataclasses.replace(config, model=model)))
