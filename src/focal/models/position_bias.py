"""Relative position bias of both versions: a table per head, whose columns `KeyTable.bias_index` picks.

Shape legend: h heads; D columns (distinct relative positions, D_k of focal level k, and the mask); w window side;
S surrounding keys. The last column is the bias of hidden keys: `MASK_VALUE`, a constant.
"""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from focal.models.ascend_forms import Dense
from focal.models.focal_keys import MASK_VALUE


class TableBias(nn.Cell):
    """Version 1: learnable tables for the window, its surroundings and each pooled level.

    Args:
        heads: h.
        window_size: w.
        surrounding: S, keys around the window; 0 for none.
        focal_sides: for each pooled level the side of its focal window, in pooled tokens.
    """

    def __init__(self, heads: int, window_size: int, surrounding: int, focal_sides: Sequence[int]) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = _table("relative_position_bias_table", (2 * window_size - 1) ** 2, heads)
        self.has_surrounding = surrounding > 0
        if self.has_surrounding:
            shape = (1, heads, window_size**2, surrounding)
            self.relative_position_bias_table_to_neighbors = _table("relative_position_bias_table_to_neighbors", *shape)
        name = "relative_position_bias_table_to_windows"
        sizes = [(window_size + side - 1) ** 2 for side in focal_sides]
        self.to_windows = ParameterTuple([_table(f"{name}.{level}", heads, size) for level, size in enumerate(sizes)])
        self.mask_column = Tensor(np.full((heads, 1), MASK_VALUE, np.float32))

    def construct(self) -> Tensor:
        parts: tuple[Tensor, ...] = (ops.transpose(self.relative_position_bias_table, (1, 0)),)  # (h, (2 * w - 1)^2)
        if self.has_surrounding:
            parts += (self.relative_position_bias_table_to_neighbors.reshape((self.heads, -1)),)  # (h, w^2 * S)
        for table in self.to_windows:
            parts += (table,)  # (h, (w + side - 1)^2)
        return ops.concat(parts + (self.mask_column,), 1)  # (h, D)


def _table(name: str, *shape: int) -> Parameter:
    return Parameter(Tensor(np.zeros(shape, np.float32)), name=name)


class CoordinateBias(nn.Cell):
    """Version 2: a small MLP per focal level maps relative coordinates, in tokens, to a bias per head.

    It runs once per distinct coordinate, not once per pair of query and key, and in float32 at every amp_level.

    Args:
        heads: h.
        head_dim: hidden channels of the MLP.
        coordinates: per focal level (D_k, 2) float32.
    """

    def __init__(self, heads: int, head_dim: int, coordinates: Sequence[np.ndarray]) -> None:
        super().__init__()
        self.coord2rpb_all = nn.CellList(
            [nn.SequentialCell(Dense(2, head_dim), nn.ReLU(), Dense(head_dim, heads)) for _ in coordinates]
        )
        self.mask_column = Tensor(np.full((heads, 1), MASK_VALUE, np.float32))
        self.use_coordinates(coordinates)

    def use_coordinates(self, coordinates: Sequence[np.ndarray]) -> None:
        """Use other distinct coordinates from now on (before compilation)."""
        self.coordinates = tuple(Tensor(level, ms.float32) for level in coordinates)

    def construct(self) -> Tensor:
        parts: tuple[Tensor, ...] = ()
        for level, coordinates in enumerate(self.coordinates):
            bias = self.coord2rpb_all[level](coordinates)  # (D_k, h)
            parts += (ops.transpose(bias, (1, 0)),)  # (h, D_k)
        return ops.concat(parts + (self.mask_column,), 1)  # (h, D)
