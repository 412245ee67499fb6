"""Pooling of windows into the coarser tokens of a focal level.

Shape legend: B batch; N tokens of the map in stage order; P pooled tokens; s * s tokens pooled into each; C channels.
"""

from __future__ import annotations

from typing import Optional

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from focal.models.focal_keys import StageMap, pooling_table
from focal.models.gathers import GatherRows


class WindowPooling(nn.Cell):
    """(B, N, C) -> (B, P, C), in raster order of the pooled map.

    In stage order the position in the window leads, so pooling sums over a leading axis. A matrix product does this
    faster than a reduction, on CPU and Ascend alike.

    Args:
        method: fc (one learnable weight per position), conv (one per position and channel), mean or max.
        stage_map: the stage's map.
        level: focal level, at least 1; level 1 pools whole windows, each further one halves the side.
        channels: C.
    """

    def __init__(self, method: str, stage_map: StageMap, level: int, channels: int) -> None:
        super().__init__()
        table = pooling_table(stage_map, level)
        self.area, self.num_pooled = table.shape  # s * s, P
        self.method, self.channels = method, channels
        side = int(self.area**0.5)
        in_place = table.size == stage_map.num_tokens and (table.reshape(-1) == np.arange(table.size)).all()
        self.pick: Optional[nn.Cell] = None if in_place else GatherRows(table, stage_map.num_tokens)
        if method == "fc":
            self.weight, self.bias = _zeros("weight", 1, self.area), _zeros("bias", 1)
        elif method == "conv":
            self.weight, self.bias = _zeros("weight", channels, 1, side, side), _zeros("bias", channels)
        elif method == "mean":
            self.weight = Tensor(np.full((1, self.area), 1 / self.area, np.float32))

    def construct(self, x: Tensor) -> Tensor:
        batch, _, channels = x.shape
        if self.pick is not None:
            x = self.pick(x)  # (B, s * s * P, C)
        if self.method == "max":
            return ops.amax(x.reshape((batch, self.area, self.num_pooled, channels)), 1)  # (B, P, C)
        if self.method == "conv":
            weight = self.weight.reshape((channels, self.area)).transpose((1, 0)).astype(x.dtype)  # (s * s, C)
            x = x.reshape((batch, self.area, self.num_pooled, channels)) * weight.reshape((1, self.area, 1, channels))
            return x.sum(1) + self.bias.astype(x.dtype)  # (B, P, C)
        x = x.reshape((batch, self.area, self.num_pooled * channels))
        weight = ops.tile(self.weight.astype(x.dtype).reshape((1, 1, self.area)), (batch, 1, 1))
        pooled = ops.bmm(weight, x).reshape((batch, self.num_pooled, channels))  # (B, P, C)
        if self.method == "fc":
            pooled = pooled + self.bias.astype(x.dtype)
        return pooled


def _zeros(name: str, *shape: int) -> Parameter:
    return Parameter(Tensor(np.zeros(shape, np.float32)), name=name)
