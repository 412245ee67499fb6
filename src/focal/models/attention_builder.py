"""Puts a version together: its geometry and its bias, for the blocks of one stage.

Also gives the buffers that the authors' modules keep beside their parameters, by their official names.
"""

from __future__ import annotations

from typing import Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn

from focal.config.schema import ModelConfig
from focal.models.focal_attention import AttentionTables, FocalAttention
from focal.models.focal_keys import (
    MASK_VALUE,
    StageMap,
    closest_keys,
    num_surrounding,
    outside_window,
    pooled_hw,
    relative_coordinates,
    relative_position_index,
    shift_mask,
    topk_closest_indices,
    window_coordinates,
    window_keys,
)
from focal.models.layers import Dropout
from focal.models.position_bias import CoordinateBias, TableBias
from focal.models.requirements import block_expand_size, pooled_levels


def attention_builder(model: ModelConfig, stage: int, stage_map: StageMap) -> AttentionBuilder:
    """The builder of the configured version for one stage."""
    kind = WindowAttentionBuilder if model.focal_version == 1 else ClosestAttentionBuilder
    return kind(model, stage, stage_map)


class AttentionBuilder:
    """Builds the attention of each block of a stage; blocks with equal keys share their tables.

    Args:
        model: settings of the network.
        stage: its number, from 0.
        stage_map: its map.
    """

    def __init__(self, model: ModelConfig, stage: int, stage_map: StageMap) -> None:
        self.model, self.stage, self.stage_map = model, stage, stage_map
        self.heads = model.num_heads[stage]
        self.dim = model.embed_dim * 2**stage
        self.levels = 1 + pooled_levels(model, stage)
        pooled = [int(np.prod(pooled_hw(stage_map, level))) for level in range(1, self.levels)]
        self.tokens = [stage_map.num_tokens, *pooled]
        self._tables: dict = {}

    def shift(self, block: int) -> int:
        """Tokens by which the windows of block number `block` are shifted."""
        shifts = self.model.use_shift and block % 2 and not self.stage_map.is_whole
        return self.model.window_size // 2 if shifts else 0

    def build(self, block: int, attn_drop: Dropout, proj_drop: Dropout) -> FocalAttention:
        """Attention of block number `block` of the stage."""
        tables, bias = self._tables_and_bias(block)
        qkv_bias, qk_scale = self.model.qkv_bias, self.model.qk_scale
        return FocalAttention(self.dim, self.heads, tables, bias, qkv_bias, qk_scale, attn_drop, proj_drop)

    def official_buffers(self, block: int, attention: FocalAttention) -> dict[str, np.ndarray]:
        """Buffers of a block upstream, by their names below the block."""
        buffers = {f"attn.{name}": value for name, value in self._attention_buffers(block, attention).items()}
        if self.shift(block):
            hidden = shift_mask(self.stage_map, self.shift(block))
            buffers["attn_mask"] = np.where(hidden, MASK_VALUE, 0.0).astype(np.float32)
        return buffers

    def _tables_and_bias(self, block: int) -> tuple[AttentionTables, nn.Cell]:
        raise NotImplementedError

    def _attention_buffers(self, block: int, attention: FocalAttention) -> dict[str, np.ndarray]:
        raise NotImplementedError


class WindowAttentionBuilder(AttentionBuilder):
    """Version 1: the window, its surroundings and the pooled windows around it; bias from tables."""

    def _expand_size(self, block: int) -> int:
        return block_expand_size(self.model, self.stage, self.stage_map, block)

    def _pooled_sides(self) -> list[int]:
        """Side of the focal window on each pooled level, in pooled tokens."""
        return [self.model.focal_windows[self.stage] + 2 ** (level - 1) - 1 for level in range(1, self.levels)]

    def _tables_and_bias(self, block: int) -> tuple[AttentionTables, nn.Cell]:
        window, expand_size, shift = (
            self.stage_map.window_size,
            self._expand_size(block),
            self.shift(block),
        )
        if (expand_size, shift) not in self._tables:
            focal_window = self.model.focal_windows[self.stage]
            # Upstream masks shifted windows in version 1 only.
            keys = window_keys(self.stage_map, self.levels, expand_size, shift, focal_window)
            self._tables[expand_size, shift] = AttentionTables(keys, self.tokens, self.heads)
        surrounding = num_surrounding(window, expand_size) if expand_size else 0
        return self._tables[expand_size, shift], TableBias(self.heads, window, surrounding, self._pooled_sides())

    def _attention_buffers(self, block: int, attention: FocalAttention) -> dict[str, np.ndarray]:
        window, expand_size = (
            self.stage_map.window_size,
            self._expand_size(block),
        )
        buffers = {"relative_position_index": relative_position_index(window, window)}
        if expand_size:
            buffers["valid_ind_rolled"] = np.flatnonzero(outside_window(window, expand_size))
        for level, side in enumerate(self._pooled_sides()):
            buffers[f"relative_position_index_{level}"] = relative_position_index(window, side)
            if level:  # the authors unfold a larger square and keep its lower right part
                skipped = 2**level - 1
                kept = np.zeros((side + skipped, side + skipped), dtype=bool)
                kept[skipped:, skipped:] = True
                buffers[f"valid_ind_unfold_{level}"] = np.flatnonzero(kept)
        return buffers


class ClosestAttentionBuilder(AttentionBuilder):
    """Version 2: the closest tokens of each level; bias from relative coordinates."""

    def build(self, block: int, attn_drop: Dropout, proj_drop: Dropout) -> FocalAttention:
        attention = super().build(block, attn_drop, proj_drop)
        attention.key_indices = ParameterTuple(
            [
                Parameter(key_index_tensor(indices), name=f"topk_cloest_indice_{level}", requires_grad=False)
                for level, indices in enumerate(self._own_indices())
            ]
        )
        return attention

    def use_indices(self, attention: FocalAttention, indices: Sequence[np.ndarray]) -> None:
        """Let `attention` attend by given key indices per level, (nW, K) each."""
        for parameter, level in zip(attention.key_indices, indices):
            parameter.set_data(key_index_tensor(level))
        tables, coordinates = self._closest_tables(indices)
        attention.use_tables(tables)
        attention.position_bias.use_coordinates(coordinates)

    def grid_size(self, level: int) -> int:
        """Number of places that key indices of `level` may name."""
        return self.stage_map.height * self.stage_map.width if level == 0 else self.stage_map.num_windows

    def _own_indices(self) -> list[np.ndarray]:
        return [topk_closest_indices(self.stage_map, level, self.model.focal_topK) for level in range(self.levels)]

    def _closest_tables(self, indices: Sequence[np.ndarray]) -> tuple[AttentionTables, list[np.ndarray]]:
        indices = [np.sort(level.astype(np.int64), axis=1) for level in indices]  # the set matters, not its order
        key = tuple(level.tobytes() for level in indices)
        if key not in self._tables:
            keys, coordinates = closest_keys(self.stage_map, indices)
            self._tables[key] = (AttentionTables(keys, self.tokens, self.heads), coordinates)
        return self._tables[key]

    def _tables_and_bias(self, block: int) -> tuple[AttentionTables, nn.Cell]:
        tables, coordinates = self._closest_tables(self._own_indices())
        return tables, CoordinateBias(self.heads, self.dim // self.heads, coordinates)

    def _attention_buffers(self, block: int, attention: FocalAttention) -> dict[str, np.ndarray]:
        buffers = {"window_coords": window_coordinates(self.stage_map.window_size)}
        for level, parameter in enumerate(attention.key_indices):
            indices = parameter.asnumpy().astype(np.int64)
            buffers[f"topk_cloest_indice_{level}"] = indices
            buffers[f"topk_cloest_coords_{level}"] = relative_coordinates(self.stage_map, level, indices)
        return buffers


def key_index_tensor(indices: np.ndarray) -> Tensor:
    """Key indices as the network keeps them."""
    return Tensor(np.asarray(indices, dtype=np.int32), ms.int32)
