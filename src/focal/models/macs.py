"""Multiply-accumulate operations (MACs) of one image's forward pass, from the settings alone.

`official_macs` counts as the authors do (`flops()` in focal_transformer.py and focal_transformer_v2.py), which is what
the paper's tables hold. Their counter leaves out the padding of maps, counts one pooled level whatever their number
(version 1), a full square of surroundings, and a coordinate MLP per window (version 2); each number that a norm takes
counts as one operation. `actual_macs` counts what is computed.
"""

from __future__ import annotations

import math

from focal.config.schema import ModelConfig
from focal.models.focal_keys import key_grid, num_surrounding, pooled_hw, pooled_window
from focal.models.stages import StageSettings, create_stages


def official_macs(model: ModelConfig) -> int:
    """The value of the authors' `model.flops()`."""
    stages = create_stages(model)
    first, last = stages[0], stages[-1]
    total: float = last.channels * first.map.height * first.map.width // 2 ** len(stages)  # the last norm
    total += last.channels * model.num_classes
    for stage in stages:
        has_norm = model.patch_norm or stage.index > 0
        total += _embedding(stage) + (stage.map.height * stage.map.width * stage.channels if has_norm else 0)
        total += sum(_official_block(stage, block) for block in range(stage.depth))
    return int(total)


def _official_block(stage: StageSettings, block: int) -> float:
    channels, window = stage.channels, stage.map.window_size
    tokens = stage.map.height * stage.map.width
    windows = tokens / window**2
    attention = _official_attention_1 if stage.model.focal_version == 1 else _official_attention_2
    total = 2 * channels * tokens + windows * attention(stage, block)
    for level in range(stage.levels - 1):
        pooled = windows * 2**level
        total += pooled * channels * (window // 2**level) ** 2 + pooled * channels * 3 * channels
    return total + 2 * tokens * channels**2 * stage.model.mlp_ratio


def _official_attention_1(stage: StageSettings, block: int) -> int:
    area = stage.map.window_size**2
    keys = area
    if stage.levels > 1:
        keys += stage.model.focal_windows[stage.index] ** 2
    if stage.expand_size(block):
        keys += (stage.map.window_size + 2 * stage.expand_size(block)) ** 2 - area
    return 4 * area * stage.channels**2 + 2 * area * stage.channels * keys


def _official_attention_2(stage: StageSettings, block: int) -> int:
    window, head_dim = stage.map.window_size, stage.channels // stage.heads
    area = window**2
    total = 4 * area * stage.channels**2
    for level in range(stage.model.focal_levels[stage.index]):
        queries = area if level == 0 else area // int(window / 2 ** (level - 1)) ** 2
        topk = _closest(stage, level)
        total += 2 * area * stage.channels * topk + queries * topk * (2 * head_dim + head_dim * stage.heads)
    return total


def actual_macs(model: ModelConfig) -> int:
    """MACs of all matrix products and convolutions; no norms, activations or bias tables.

    Padding tokens are included because they are computed, in the MLP as well, while the authors pad for the attention
    only. Version 2's coordinate MLP is left out: it runs once per batch, and not at all once the bias is folded.
    """
    stages = create_stages(model)
    blocks = sum(_actual_block(stage, block) for stage in stages for block in range(stage.depth))
    return sum(map(_embedding, stages)) + blocks + stages[-1].channels * model.num_classes


def _actual_block(stage: StageSettings, block: int) -> int:
    channels, tokens = stage.channels, stage.map.num_tokens
    pooling = 0
    if stage.pool_method in ("fc", "conv"):
        for level in range(1, stage.levels):
            area = pooled_window(stage.map.window_size, level) ** 2
            pooling += math.prod(pooled_hw(stage.map, level)) * area * channels
    dense = sum(stage.tokens) * 3 * channels**2 + tokens * channels**2
    attention = 2 * tokens * keys_per_query(stage, block) * channels
    return pooling + dense + attention + 2 * tokens * channels * int(channels * stage.model.mlp_ratio)


def keys_per_query(stage: StageSettings, block: int) -> int:
    """Keys that each query of a block attends to, hidden ones included."""
    if stage.model.focal_version == 2:
        return sum(_closest(stage, level) for level in range(stage.levels))
    window, expand_size = stage.map.window_size, stage.expand_size(block)
    surrounding = num_surrounding(window, expand_size) if expand_size else 0
    return window**2 + surrounding + sum(side**2 for side in stage.focal_sides)


def _embedding(stage: StageSettings) -> int:
    """The convolution that makes a stage's tokens: the stem, or the downsampling before it."""
    kernel, _, _ = stage.convolution
    inputs = stage.model.in_channels if stage.index == 0 else stage.channels // 2
    return stage.map.height * stage.map.width * stage.channels * inputs * kernel**2


def _closest(stage: StageSettings, level: int) -> int:
    """Version 2: number of keys of a level."""
    return min(stage.model.focal_topK, math.prod(key_grid(stage.map, level)))
