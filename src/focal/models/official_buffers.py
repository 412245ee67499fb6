"""The arrays that the authors' modules keep beside their parameters, by their official names.

They follow from the settings, but for version 2's key indices, which a checkpoint may bring.
"""

from __future__ import annotations

import numpy as np

from focal.models.focal_attention import FocalAttention
from focal.models.focal_keys import (
    MASK_VALUE,
    outside_window,
    relative_coordinates,
    relative_position_index,
    shift_mask,
    window_coordinates,
)
from focal.models.stages import StageSettings


def block_buffers(stage: StageSettings, block: int, attention: FocalAttention) -> dict[str, np.ndarray]:
    """Buffers of block number `block` of a stage: name below the block -> value."""
    closest = stage.model.focal_version == 2
    buffers = _closest_buffers(stage, attention) if closest else _window_buffers(stage, block)
    buffers = {f"attn.{name}": value for name, value in buffers.items()}
    if stage.shift(block):
        hidden = shift_mask(stage.map, stage.shift(block))
        buffers["attn_mask"] = np.where(hidden, MASK_VALUE, 0.0).astype(np.float32)
    return buffers


def _window_buffers(stage: StageSettings, block: int) -> dict[str, np.ndarray]:
    window, expand_size = stage.map.window_size, stage.expand_size(block)
    buffers = {"relative_position_index": relative_position_index(window, window)}
    if expand_size:
        buffers["valid_ind_rolled"] = np.flatnonzero(outside_window(window, expand_size))
    for level, side in enumerate(stage.focal_sides):
        buffers[f"relative_position_index_{level}"] = relative_position_index(window, side)
        if level:  # the authors unfold a larger square and keep its lower right part
            skipped = 2**level - 1
            kept = np.zeros((side + skipped, side + skipped), dtype=bool)
            kept[skipped:, skipped:] = True
            buffers[f"valid_ind_unfold_{level}"] = np.flatnonzero(kept)
    return buffers


def _closest_buffers(stage: StageSettings, attention: FocalAttention) -> dict[str, np.ndarray]:
    buffers = {"window_coords": window_coordinates(stage.map.window_size)}
    for level, parameter in enumerate(attention.key_indices):
        indices = parameter.asnumpy().astype(np.int64)
        buffers[f"topk_cloest_indice_{level}"] = indices
        buffers[f"topk_cloest_coords_{level}"] = relative_coordinates(stage.map, level, indices)
    return buffers
