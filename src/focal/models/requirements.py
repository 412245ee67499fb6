"""What a network of given settings must satisfy; refused with the field and the fix named, before anything is built."""

from __future__ import annotations

from focal.config.schema import ConfigError, ModelConfig
from focal.models.focal_keys import StageMap, pooled_window
from focal.models.layers import patch_geometry, patch_output_hw


def stage_maps(model: ModelConfig) -> list[StageMap]:
    """The map of each stage, cut into windows.

    Sizes follow the convolutions: odd maps are handled as PyTorch's Conv2d does, also where upstream's bookkeeping by
    halving disagrees and stops.

    Raises:
        ConfigError: the image is too small for the stages.
    """
    hw = model.image_hw
    maps = []
    for stage in range(len(model.depths)):
        kernel, stride, padding = patch_geometry(
            model.patch_size if stage == 0 else 2, model.use_conv_embed, stage == 0
        )
        hw = patch_output_hw(hw, kernel, stride, padding)
        if min(hw) < 1:
            raise ConfigError(f"image_size: {model.image_size} leaves no tokens for stage {stage}; take a larger image")
        maps.append(StageMap.create(*hw, model.window_size))
    return maps


def pool_method(model: ModelConfig, stage: int) -> str:
    """How stage pools its windows; none outside focal_stages."""
    return model.focal_pool if stage in model.focal_stages else "none"


def pooled_levels(model: ModelConfig, stage: int) -> int:
    """Number of pooled focal levels of a stage."""
    return 0 if pool_method(model, stage) == "none" else max(model.focal_levels[stage] - 1, 0)


def block_expand_size(model: ModelConfig, stage: int, stage_map: StageMap, block: int) -> int:
    """Version 1: surrounding tokens that block number `block` sees; `expand_layer` names the blocks that see none."""
    blind = {"even": 0, "odd": 1, "all": -1}[model.expand_layer]
    if stage_map.is_whole or model.focal_levels[stage] < 1 or block % 2 == blind:
        return 0
    return model.expand_sizes[stage]


def check_network(model: ModelConfig) -> list[StageMap]:
    """Raise `ConfigError` for what neither upstream nor this code can build; return the stage maps."""
    maps = stage_maps(model)
    if int(model.embed_dim * model.mlp_ratio) < 1:
        raise ConfigError(f"mlp_ratio: {model.mlp_ratio} leaves no hidden channels of {model.embed_dim}; 4 is usual")
    for stage, stage_map in enumerate(maps):
        _check_pooling(model, stage, stage_map)
        if model.focal_version == 1:
            _check_version_1(model, stage, stage_map)
        else:
            _check_version_2(model, stage)
        has_shift = model.use_shift and model.depths[stage] > 1 and not stage_map.is_whole
        needs_tiling = model.focal_version == 2 or has_shift
        if stage_map.is_padded and needs_tiling and not model.pad_windows:
            raise ConfigError(
                f"image_size: {model.image_size} gives stage {stage} a map of {stage_map.height} x {stage_map.width} "
                f"tokens, which windows of {stage_map.window_size} do not tile; take a multiple of "
                f"{model.patch_size * 2**stage * model.window_size}, another window_size, or pad_windows: True"
            )
    return maps


def _check_pooling(model: ModelConfig, stage: int, stage_map: StageMap) -> None:
    levels = pooled_levels(model, stage)
    if levels and pooled_window(stage_map.window_size, levels) < 1:
        raise ConfigError(
            f"focal_levels: stage {stage} has {model.focal_levels[stage]}, but its windows of {stage_map.window_size} "
            f"can be halved for at most {stage_map.window_size.bit_length() + 1}"
        )


def _check_version_1(model: ModelConfig, stage: int, stage_map: StageMap) -> None:
    side = model.focal_windows[stage]
    if pooled_levels(model, stage) and side % 2 == 0:
        raise ConfigError(f"focal_windows: {side} of stage {stage} is even; version 1 needs odd ones, e.g. {side + 1}")
    expand = max(block_expand_size(model, stage, stage_map, block) for block in range(model.depths[stage]))
    if expand > stage_map.window_size:
        raise ConfigError(
            f"expand_sizes: {expand} of stage {stage} is more than the {stage_map.window_size} of its windows"
        )


def _check_version_2(model: ModelConfig, stage: int) -> None:
    levels = model.focal_levels[stage]
    if levels < 1:
        raise ConfigError(
            f"focal_levels: stage {stage} has {levels}; version 2 needs at least 1, or nothing is attended to"
        )
    if levels > 1 and pool_method(model, stage) == "none":
        raise ConfigError(
            f"focal_pool: none for stage {stage}, but its focal_levels are {levels}; version 2 needs pooling then "
            f"(fc, conv, mean, max, and the stage in focal_stages), or focal_levels 1"
        )
