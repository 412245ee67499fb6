"""Multiply-adds of one image's forward pass, from the settings alone: as the authors count them, and as they are.

The authors' counter (`flops()` in focal_transformer.py and focal_transformer_v2.py) leaves out the padding of maps,
counts one pooled level whatever their number (version 1), a full square of surroundings, and an MLP of coordinates per
window (version 2); it counts norms as one operation per number. It is what the paper's tables hold.
"""

from __future__ import annotations

from focal.config.schema import ModelConfig
from focal.models.focal_keys import StageMap, key_grid, num_surrounding, pooled_hw, pooled_window
from focal.models.layers import patch_geometry
from focal.models.requirements import block_expand_size, pool_method, pooled_levels, stage_maps


def official_multiply_adds(model: ModelConfig) -> int:
    """What the authors' `model.flops()` returns."""
    maps = stage_maps(model)
    total = _official_embedding(model, 0, maps[0])
    for stage, (depth, stage_map) in enumerate(zip(model.depths, maps)):
        total += sum(_official_block(model, stage, stage_map, block) for block in range(depth))
        if stage + 1 < len(maps):
            total += _official_embedding(model, stage + 1, maps[stage + 1])
    features = model.embed_dim * 2 ** (len(maps) - 1)
    total += features * maps[0].height * maps[0].width // 2 ** len(maps)
    return int(total + features * model.num_classes)


def _official_embedding(model: ModelConfig, stage: int, stage_map: StageMap) -> float:
    has_norm = model.patch_norm or stage > 0
    tokens = stage_map.height * stage_map.width
    return _embedding(model, stage, stage_map) + (tokens * model.embed_dim * 2**stage if has_norm else 0)


def _official_block(model: ModelConfig, stage: int, stage_map: StageMap, block: int) -> float:
    dim, window = model.embed_dim * 2**stage, stage_map.window_size
    tokens = stage_map.height * stage_map.width
    windows = tokens / window**2
    attention = _official_attention_1 if model.focal_version == 1 else _official_attention_2
    total = 2 * dim * tokens + windows * attention(model, stage, stage_map, block)
    for level in range(pooled_levels(model, stage)):
        pooled = windows * 2**level
        total += pooled * dim * (window // 2**level) ** 2 + pooled * dim * 3 * dim
    return total + 2 * tokens * dim * dim * model.mlp_ratio


def _official_attention_1(model: ModelConfig, stage: int, stage_map: StageMap, block: int) -> float:
    dim, window = model.embed_dim * 2**stage, stage_map.window_size
    area = window**2
    keys = area
    if pooled_levels(model, stage):
        keys += model.focal_windows[stage] ** 2
    expand_size = block_expand_size(model, stage, stage_map, block)
    if expand_size:
        keys += (window + 2 * expand_size) ** 2 - area
    return 4 * area * dim * dim + 2 * area * dim * keys


def _official_attention_2(model: ModelConfig, stage: int, stage_map: StageMap, block: int) -> float:
    dim, window = model.embed_dim * 2**stage, stage_map.window_size
    area, heads = window**2, model.num_heads[stage]
    total = 4 * area * dim * dim
    for level in range(model.focal_levels[stage]):
        queries = area if level == 0 else area // int(window / 2 ** (level - 1)) ** 2
        topk = _closest(model, stage_map, level)
        total += 2 * area * dim * topk + queries * topk * (2 * (dim // heads) + (dim // heads) * heads)
    return total


def true_multiply_adds(model: ModelConfig) -> int:
    """Multiply-adds of all matrix products and convolutions; no norms, activations, or bias tables.

    Padding tokens are included, as they are computed: in the MLP as well, while the authors pad for attention only.
    Version 2's coordinate MLP is left out: it runs once per batch, and not at all where the bias is folded.
    """
    maps = stage_maps(model)
    total = 0
    for stage, (depth, stage_map) in enumerate(zip(model.depths, maps)):
        total += _embedding(model, stage, stage_map)
        total += sum(_true_block(model, stage, stage_map, block) for block in range(depth))
    return int(total + model.embed_dim * 2 ** (len(maps) - 1) * model.num_classes)


def _true_block(model: ModelConfig, stage: int, stage_map: StageMap, block: int) -> int:
    dim, tokens = model.embed_dim * 2**stage, stage_map.num_tokens
    pooled, pooling = 0, 0
    for level in range(1, pooled_levels(model, stage) + 1):
        rows, columns = pooled_hw(stage_map, level)
        pooled += rows * columns
        if pool_method(model, stage) in ("fc", "conv"):
            pooling += rows * columns * pooled_window(stage_map.window_size, level) ** 2 * dim
    dense = (tokens + pooled) * 3 * dim * dim + tokens * dim * dim
    attention = 2 * tokens * keys_per_query(model, stage, stage_map, block) * dim
    mlp = 2 * tokens * dim * int(dim * model.mlp_ratio)
    return pooling + dense + attention + mlp


def keys_per_query(model: ModelConfig, stage: int, stage_map: StageMap, block: int) -> int:
    """Keys that each query of a block attends to, hidden ones included."""
    if model.focal_version == 2:
        return sum(_closest(model, stage_map, level) for level in range(1 + pooled_levels(model, stage)))
    window, expand_size = stage_map.window_size, block_expand_size(model, stage, stage_map, block)
    keys = window**2 + (num_surrounding(window, expand_size) if expand_size else 0)
    return keys + sum(
        (model.focal_windows[stage] + 2 ** (level - 1) - 1) ** 2 for level in range(1, pooled_levels(model, stage) + 1)
    )


def _embedding(model: ModelConfig, stage: int, stage_map: StageMap) -> int:
    """The projection that makes a stage's tokens: the stem, or the downsampling before."""
    kernel, _, _ = patch_geometry(model.patch_size if stage == 0 else 2, model.use_conv_embed, stage == 0)
    channels = model.embed_dim * 2**stage
    inputs = model.in_channels if stage == 0 else channels // 2
    return stage_map.height * stage_map.width * channels * inputs * kernel**2


def _closest(model: ModelConfig, stage_map: StageMap, level: int) -> int:
    rows, columns = key_grid(stage_map, level)
    return min(model.focal_topK, rows * columns)
