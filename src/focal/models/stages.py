"""Derives each stage's sizes from the configuration, and refuses impossible settings by name."""

from __future__ import annotations

from dataclasses import dataclass

from focal.config.schema import ConfigError, ModelConfig
from focal.models.focal_keys import StageMap, pooled_hw, pooled_window


@dataclass(frozen=True)
class StageSettings:
    """One stage of a network.

    Attributes:
        model: settings of the whole network.
        index: number of the stage, from 0.
        map: the stage's map of tokens, cut into windows.
    """

    model: ModelConfig
    index: int
    map: StageMap

    @property
    def channels(self) -> int:
        """C: channels of each token."""
        return self.model.embed_dim * 2**self.index

    @property
    def heads(self) -> int:
        """Number of attention heads."""
        return self.model.num_heads[self.index]

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self.model.depths[self.index]

    @property
    def convolution(self) -> tuple[int, int, int]:
        """Kernel, stride and padding of the convolution that makes the stage's tokens: the stem or a downsampling."""
        return _convolution(self.model, self.index)

    @property
    def pool_method(self) -> str:
        """How windows are pooled; none outside focal_stages."""
        return self.model.focal_pool if self.index in self.model.focal_stages else "none"

    @property
    def levels(self) -> int:
        """Number of focal levels that have keys, the finest included; levels 1, 2, ... are pooled."""
        return 1 if self.pool_method == "none" else max(self.model.focal_levels[self.index], 1)

    @property
    def tokens(self) -> tuple[int, ...]:
        """Tokens of the (padded) map and of each pooled level."""
        pooled = (pooled_hw(self.map, level) for level in range(1, self.levels))
        return (self.map.num_tokens, *(height * width for height, width in pooled))

    @property
    def focal_sides(self) -> tuple[int, ...]:
        """Version 1: side of the focal window on each pooled level, in pooled tokens."""
        return tuple(self.model.focal_windows[self.index] + 2 ** (level - 1) - 1 for level in range(1, self.levels))

    def expand_size(self, block: int) -> int:
        """Version 1: width of the surroundings that block number `block` attends to, in tokens; 0 for none."""
        without = {"even": 0, "odd": 1, "all": -1}[self.model.expand_layer]
        if self.map.is_whole or self.model.focal_levels[self.index] < 1 or block % 2 == without:
            return 0
        return self.model.expand_sizes[self.index]

    def shift(self, block: int) -> int:
        """Number of tokens by which the windows of block number `block` are shifted."""
        shifts = self.model.use_shift and block % 2 == 1 and not self.map.is_whole
        return self.model.window_size // 2 if shifts else 0


def _convolution(model: ModelConfig, stage: int) -> tuple[int, int, int]:
    if model.use_conv_embed:
        return (7, 4, 2) if stage == 0 else (3, 2, 1)
    patch = model.patch_size if stage == 0 else 2
    return (patch, patch, 0)


def create_stages(model: ModelConfig) -> list[StageSettings]:
    """The stages of a network, from the image on.

    Map sizes follow the convolutions. Odd sizes are handled as PyTorch's Conv2d handles them, also where upstream
    tracks sizes by halving, disagrees with its own convolutions and stops.

    Raises:
        ConfigError: the image is too small for the stages.
    """
    height, width = model.image_hw
    stages = []
    for index in range(len(model.depths)):
        kernel, stride, padding = _convolution(model, index)
        height, width = ((size + 2 * padding - kernel) // stride + 1 for size in (height, width))
        if min(height, width) < 1:
            raise ConfigError(f"image_size: {model.image_size} leaves no tokens for stage {index}; use a larger image")
        stages.append(StageSettings(model, index, StageMap.create(height, width, model.window_size)))
    return stages


def check_network(model: ModelConfig) -> list[StageSettings]:
    """The stages of a network, after checking that it can be built.

    Raises:
        ConfigError: settings that neither upstream nor this code can build.
    """
    if int(model.embed_dim * model.mlp_ratio) < 1:
        raise ConfigError(f"mlp_ratio: {model.mlp_ratio} leaves no hidden channels of {model.embed_dim}; 4 is usual")
    stages = create_stages(model)
    for stage in stages:
        _check_levels(stage)
        if model.focal_version == 1:
            _check_version_1(stage)
        else:
            _check_version_2(stage)
        _check_tiling(stage)
    return stages


def _check_levels(stage: StageSettings) -> None:
    window = stage.map.window_size
    if stage.levels > 1 and pooled_window(window, stage.levels - 1) < 1:
        raise ConfigError(
            f"focal_levels: stage {stage.index} has {stage.levels}, but its windows of {window} tokens can be halved "
            f"for at most {window.bit_length() + 1} levels"
        )


def _check_version_1(stage: StageSettings) -> None:
    side, window = stage.model.focal_windows[stage.index], stage.map.window_size
    if stage.levels > 1 and side % 2 == 0:
        raise ConfigError(
            f"focal_windows: {side} of stage {stage.index} is even; version 1 needs an odd number, e.g. {side + 1}"
        )
    expand = max(stage.expand_size(block) for block in range(stage.depth))
    if expand > window:
        raise ConfigError(f"expand_sizes: {expand} of stage {stage.index} exceeds its window_size of {window}")


def _check_version_2(stage: StageSettings) -> None:
    levels = stage.model.focal_levels[stage.index]
    if levels < 1:
        raise ConfigError(
            f"focal_levels: stage {stage.index} has {levels}; version 2 needs at least 1, or there are no keys"
        )
    if levels > 1 and stage.pool_method == "none":
        raise ConfigError(
            f"focal_pool: none for stage {stage.index}, but its focal_levels are {levels}; either set focal_pool to "
            f"fc, conv, mean or max and list the stage in focal_stages, or set its focal_levels to 1"
        )


def _check_tiling(stage: StageSettings) -> None:
    model, window = stage.model, stage.map.window_size
    needs_tiling = model.focal_version == 2 or any(stage.shift(block) for block in range(stage.depth))
    if stage.map.is_padded and needs_tiling and not model.pad_windows:
        raise ConfigError(
            f"image_size: {model.image_size} gives stage {stage.index} a map of {stage.map.height} x "
            f"{stage.map.width} tokens, which windows of {window} do not tile; use a multiple of "
            f"{model.patch_size * 2**stage.index * model.window_size}, another window_size, or pad_windows: True"
        )
