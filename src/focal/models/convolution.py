"""The convolution of the stem and of the downsamplings, in a form for each kind of device.

Shape legend: B batch; C_in, C_out channels; H, W height and width of the map; H', W' of the convolution's result;
k, s, p its kernel, stride and padding. For a CPU the map is cut into R rows of g pixels; a line of a kernel spans q.
"""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.ops.auto_generate import Conv2DExt

from focal.models.ascend_forms import AscendForm, has_newer_kernels
from focal.models.cpu_forms import CpuForm
from focal.models.gathers import GatherRows, index_tensor


class ConvolveToTokens(nn.Conv2d, AscendForm, CpuForm):
    """Map (B, C_in, H, W) -> tokens (B, H' * W', C_out) in raster order: convolution with bias and explicit padding.

    On an Ascend, convolution and bias are one kernel. On a CPU, each patch becomes a row, and all are multiplied by the
    weights at once: on some machines the CPU convolution of MindSpore 2.9 and 2.10 takes a hundred times as long as
    that of 2.8, while this takes as long as the latter. Exported files have the convolution. The weights, which
    initialization.py sets, are those of nn.Conv2d: (C_out, C_in, k, k).

    Args:
        in_channels, channels: C_in, C_out.
        kernel, stride, padding: k, s, p.
        height, width: H, W.
    """

    def __init__(
        self, in_channels: int, channels: int, kernel: int, stride: int, padding: int, height: int, width: int
    ) -> None:
        super().__init__(  # type: ignore[call-arg]  # for mypy, MindSpore has no types
            in_channels, channels, kernel, stride, "pad", padding, has_bias=True, weight_init="zeros", bias_init="zeros"
        )
        self.for_ascend = has_newer_kernels()
        self.for_cpu = ms.get_context("device_target") == "CPU"
        self.convolve = Conv2DExt()
        self.strides, self.paddings = (stride, stride), (padding, padding)
        # So many pixels side by side that every patch starts with a whole row of them.
        pixels = math.gcd(stride, padding, width)
        table = patch_table(height, width, kernel, stride, padding, pixels)
        self.row_shape = (height * width // pixels, pixels * in_channels)
        self.excess = table.shape[-1] * pixels - kernel
        self.gather_patches = GatherPatches(table, self.row_shape[0])
        self.product = ops.MatMul(transpose_b=True)

    def construct(self, x: Tensor) -> Tensor:
        if self.for_cpu:
            return self.multiply_patches(x)
        if self.for_ascend:
            x = self.convolve(x, self.weight, self.bias, self.strides, self.paddings, (1, 1), 1)  # (B, C_out, H', W')
        else:
            x = super().construct(x)  # (B, C_out, H', W')
        return _map_to_tokens(x)

    def multiply_patches(self, x: Tensor) -> Tensor:
        """The same by one matrix product."""
        batch = x.shape[0]
        rows = _map_to_tokens(x).reshape((batch, *self.row_shape))  # (B, R, g * C_in)
        weight = self.weight.astype(x.dtype)
        patches = self.gather_patches(rows)  # (B, H' * W' * k * q, g * C_in)
        if self.excess:
            zeros = ops.zeros((*weight.shape[:3], self.excess), weight.dtype)
            weight = ops.concat((weight, zeros), 3)  # (C_out, C_in, k, q * g)
        weight = weight.reshape((weight.shape[0], weight.shape[1], -1)).transpose((0, 2, 1))
        weight = weight.reshape((weight.shape[0], -1))  # (C_out, k * q * g * C_in)
        tokens = self.product(patches.reshape((-1, weight.shape[1])), weight)  # (B * H' * W', C_out)
        return (tokens + self.bias.astype(x.dtype)).reshape((batch, -1, weight.shape[0]))  # (B, H' * W', C_out)


class GatherPatches(GatherRows):
    """GatherRows where -1 in the table reads zeros."""

    def __init__(self, table: np.ndarray, num_rows: int) -> None:
        super().__init__(table, num_rows)
        self.has_padding = bool((table < 0).any())
        self.table = index_tensor(np.where(table < 0, num_rows, table))

    def construct(self, rows: Tensor) -> Tensor:
        if self.has_padding:
            batch, _, width = rows.shape
            rows = ops.concat((rows, ops.zeros((batch, 1, width), rows.dtype)), 1)  # (B, R + 1, g * C_in)
        return self.take_rows(rows, self.table)


def _map_to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C), raster order."""
    batch, channels, height, width = x.shape
    return x.reshape((batch, channels, height * width)).transpose((0, 2, 1))


def patch_table(height: int, width: int, kernel: int, stride: int, padding: int, pixels: int) -> np.ndarray:
    """The rows of a map that each patch consists of.

    Args:
        height, width: H, W of the map in pixels.
        kernel, stride, padding: of the convolution.
        pixels: g, pixels side by side in a row; divides `width`, `stride` and `padding`.

    Returns:
        (H', W', k, q): for each patch and line of the kernel the q = ceil(k / g) rows, numbered in raster order; -1
        where the map has none. The last q * g - k pixels of a line are beyond the kernel.
    """
    lines = _taken(height, kernel, stride, padding)[:, None, :, None]  # (H', 1, k, 1)
    per_line = width // pixels
    columns = _taken(width, kernel, stride, padding)[:, ::pixels] // pixels
    columns = columns[None, :, None, :]  # (1, W', 1, q)
    inside = (lines >= 0) & (lines < height) & (columns >= 0) & (columns < per_line)
    return np.where(inside, lines * per_line + columns, -1)


def _taken(size: int, kernel: int, stride: int, padding: int) -> np.ndarray:
    """(size', k): the pixels along one axis that each place of the kernel takes, also those outside the map."""
    places = (size + 2 * padding - kernel) // stride + 1
    return np.arange(places)[:, None] * stride - padding + np.arange(kernel)
