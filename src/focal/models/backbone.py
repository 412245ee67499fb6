"""Focal Transformers as backbones for detection and segmentation: the maps of chosen stages."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Sequence
from typing import Union

from mindspore import Tensor, nn

from focal.config import Config, ConfigError
from focal.models.ascend_forms import LayerNorm
from focal.models.focal_transformer import FocalTransformer, create_model


class FeatureInfo:
    """What the maps of a backbone are like; the methods have timm's names.

    Args:
        network: the network behind the backbone.
        out_indices: the chosen stages.
    """

    def __init__(self, network: FocalTransformer, out_indices: Sequence[int]) -> None:
        self.out_indices = tuple(out_indices)
        settings = [stage.settings for stage in network.layers]
        strides = [math.prod(s.convolution[1] for s in settings[: index + 1]) for index in range(len(settings))]
        self._channels = [settings[index].channels for index in self.out_indices]
        self._reduction = [strides[index] for index in self.out_indices]

    def channels(self) -> list[int]:
        """Number of channels of each map."""
        return list(self._channels)

    def reduction(self) -> list[int]:
        """Pixels of the image per token of each map, along each side (its stride)."""
        return list(self._reduction)


class FocalBackbone(nn.Cell):
    """Images (B, in_channels, H, W) -> a map (B, C_i, H_i, W_i) for each chosen stage; of strides 4, 8, 16, 32.

    Each map is the input of a stage's downsampling after a LayerNorm for this map (`norm0` ... `norm3`, newly
    initialised, to be trained with the task), as in Swin's and the authors' detection code. Parameters keep their
    official names. What follows the last chosen stage is neither run nor trained; its parameters stay, without
    gradient, so that a classifier's weights fit.

    Args:
        network: a network without head.
        out_indices: the stages whose maps are returned, ascending; negative numbers count from the last stage. None:
            all of them.

    Attributes:
        channels: C_i of each map.
        feature_info: channels and strides of the maps, under timm's names.

    Raises:
        ConfigError: there is no such stage, or the stages are not in ascending order.
    """

    def __init__(self, network: FocalTransformer, out_indices: Union[Sequence[int], None] = None) -> None:
        super().__init__(auto_prefix=False)  # with a prefix, checkpoints of classifiers would not fit `network`
        self.network = network
        self.out_indices = _chosen_stages(out_indices, len(network.layers))
        self.feature_info = FeatureInfo(network, self.out_indices)
        self.channels = tuple(self.feature_info.channels())
        self.last = self.out_indices[-1]
        stages = list(network.layers)  # not a slice of a CellList, which would rename the parameters
        for cell in (*stages[self.last + 1 :], stages[self.last].downsample, network.norm):
            for parameter in [] if cell is None else cell.get_parameters():
                parameter.requires_grad = False
        self.norms = nn.CellList([LayerNorm(channels) for channels in self.channels])
        for index, norm in zip(self.out_indices, self.norms):
            norm.gamma.name, norm.beta.name = f"norm{index}.weight", f"norm{index}.bias"

    def construct(self, images: Tensor) -> tuple[Tensor, ...]:
        factors = self.network.split_drop_path(None, images.shape[0])
        x = self.network.embed(images)  # (B, H_0 * W_0, C_0)
        outputs: tuple[Tensor, ...] = ()
        for index, stage in enumerate(self.network.layers):
            if index <= self.last:
                x = stage.run_blocks(x, factors[index])
                if index in self.out_indices:
                    outputs += (stage.as_map(self.norms[len(outputs)](x)),)  # (B, C_i, H_i, W_i)
                if index < self.last:
                    x = stage.downsample(stage.as_map(x))
        return outputs


def _chosen_stages(out_indices: Union[Sequence[int], None], stages: int) -> tuple[int, ...]:
    """`out_indices` as numbers from 0; see `FocalBackbone`."""
    if out_indices is None:
        return tuple(range(stages))
    hint = f"give ascending numbers of stages from 0 to {stages - 1}, for example {tuple(range(stages))[-2:]}"
    if stages == 1:
        hint = "give ascending numbers of stages, here (0,), the only one"
    if isinstance(out_indices, str) or not isinstance(out_indices, Sequence) or not out_indices:
        raise ConfigError(f"out_indices: {out_indices!r}: {hint}")
    for index in out_indices:
        if isinstance(index, bool) or not hasattr(index, "__index__") or not -stages <= index < stages:
            raise ConfigError(f"out_indices: {out_indices!r}: there is no stage {index!r}; {hint}")
    chosen = tuple(operator.index(index) % stages for index in out_indices)
    if list(chosen) != sorted(set(chosen)):
        raise ConfigError(f"out_indices: {out_indices!r}: the stages are not in ascending order; {hint}")
    return chosen


def create_backbone(
    config: Config,
    image_size: Union[int, tuple[int, int], None] = None,
    out_indices: Union[Sequence[int], None] = None,
) -> FocalBackbone:
    """A backbone for images of one size; `focal.create_model(name, features_only=True)` also loads weights into it.

    Load weights into `backbone.network` before another Cell takes the backbone in: `load_weights` of
    focal/checkpoint/weights.py, or `load_official_state_dict`. docs/models.md has the commands.

    Args:
        config: settings of the network; its head is left out.
        image_size: height and width in pixels; any are possible, as maps are padded to whole windows. None: the
            configured size.
        out_indices: see `FocalBackbone`.

    Raises:
        ConfigError: the image is too small for the stages, or there are no such stages.
    """
    size = config.model.image_size if image_size is None else image_size
    model = dataclasses.replace(config.model, image_size=size, num_classes=0, pad_windows=True)
    return FocalBackbone(create_model(dataclasses.replace(config, model=model)), out_indices)
