"""Building blocks of the network: exact GELU, MLP, patch embedding, drop path and dropout that can be resumed.

Shape legend: B batch; N tokens; C channels; H, W height and width of a map.
"""

from __future__ import annotations

import math
from typing import Optional

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.ops.auto_generate import SoftmaxBackward, UniformExt

_MATMUL = ops.MatMul()  # the function ops.matmul unfolds into a dozen nodes for the compiler
_REDUCE_SUM = ops.ReduceSum(keep_dims=True)


def runs_on_cpu() -> bool:
    """Whether networks built now will run on a CPU, whose kernels call for other operations in a few places."""
    return ms.get_context("device_target") == "CPU"


class AddToSamples(nn.Cell):
    """x (B, ...) + addend (1, ...).

    MindSpore's CPU kernel of an addition that broadcasts runs at a tenth of the speed of one that does not, so there
    the addend is repeated first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.repeat_first = runs_on_cpu()

    def construct(self, x: Tensor, addend: Tensor) -> Tensor:
        if self.repeat_first and self.training:
            # A product with ones repeats as fast as tile, and its gradient, a product too, beats the sum over samples.
            addend = _MATMUL(ops.ones((x.shape[0], 1), addend.dtype), addend.reshape((1, -1))).reshape(x.shape)
        elif self.repeat_first:
            addend = ops.tile(addend, (x.shape[0],) + (1,) * (x.ndim - 1))
        return x + addend

    def sum_samples(self, gradient: Tensor) -> Tensor:
        """Gradient of the sum (B, ...) -> gradient of the addend (1, ...)."""
        if self.repeat_first:
            ones = ops.ones((1, gradient.shape[0]), gradient.dtype)
            summed = _MATMUL(ones, gradient.reshape((gradient.shape[0], -1)))
            return summed.reshape((1,) + gradient.shape[1:])
        return _REDUCE_SUM(gradient, 0)


class SoftmaxGradient(nn.Cell):
    """Gradient of softmax over the last axis: (dout - sum(dout * out)) * out, sums over rows; all (..., K).

    On CPU, MindSpore makes a subtraction that broadcasts of it, which is slow there and keeps a table of 16 bytes per
    number as long as the graph lives; so there the sums are spread by a product with ones.
    """

    def __init__(self) -> None:
        super().__init__()
        self.spread_first = runs_on_cpu()
        self.softmax_backward = SoftmaxBackward()

    def construct(self, dout: Tensor, out: Tensor) -> Tensor:
        if self.spread_first:
            sums = (dout * out).sum(-1).reshape((-1, 1))
            sums = _MATMUL(sums, ops.ones((1, out.shape[-1]), out.dtype)).reshape(out.shape)
            return (dout - sums) * out
        return self.softmax_backward(dout, out, -1)


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm over the channels with PyTorch's epsilon."""

    def __init__(self, channels: int) -> None:
        super().__init__((channels,), epsilon=1e-5)


def dense(in_channels: int, out_channels: int, has_bias: bool = True) -> nn.Dense:
    """nn.Dense without MindSpore's random start: `initialization.py` sets all values."""
    return nn.Dense(in_channels, out_channels, weight_init="zeros", bias_init="zeros", has_bias=has_bias)


def conv2d(in_channels: int, out_channels: int, kernel: int, stride: int, padding: int) -> nn.Conv2d:
    """nn.Conv2d with bias and explicit padding, likewise."""
    return nn.Conv2d(
        in_channels,
        out_channels,
        kernel,
        stride,
        pad_mode="pad",
        padding=padding,
        has_bias=True,
        weight_init="zeros",
        bias_init="zeros",
    )


# Phi(x) = sigmoid(x * P(x^2)): P fitted (Lawson's weighted least squares, in double precision) to the logit of the
# normal distribution on |x| <= 7. Largest error of x * Phi(x): 6.6e-8, of Phi: 1.1e-7; tests/unit/models checks both.
_LOGIT_POLYNOMIAL = (
    1.59576854e00,
    7.26682922e-02,
    -6.60489606e-05,
    -1.10548094e-04,
    7.94832129e-06,
    -2.67577479e-07,
    3.62810256e-09,
)


class NormalCdf(nn.Cell):
    """Phi(x), the distribution function of the standard normal, elementwise.

    On CPU, where MindSpore's Erf takes as long as the matrix products of an MLP, a polynomial inside a sigmoid takes
    its place, good to float32's rounding and computed in it: float16 can hold neither its coefficients nor its powers.
    Elsewhere, and for export, Phi(x) = (1 + erf(x / sqrt(2))) / 2.
    """

    def __init__(self) -> None:
        super().__init__()
        self.use_polynomial = runs_on_cpu()

    def construct(self, x: Tensor) -> Tensor:
        if self.use_polynomial:
            dtype, x = x.dtype, x.astype(ms.float32)
            square = ops.square(x)
            logit = square * _LOGIT_POLYNOMIAL[-1] + _LOGIT_POLYNOMIAL[-2]
            for coefficient in _LOGIT_POLYNOMIAL[-3::-1]:
                logit = logit * square + coefficient
            return ops.sigmoid(logit * x).astype(dtype)
        return 0.5 + 0.5 * ops.erf(x * math.sqrt(0.5))


class GeluAndSlope(nn.Cell):
    """x * Phi(x) and its derivative Phi(x) + x * phi(x), phi the normal density.

    The derivative is computed on the way forward, as it is all that the backward pass then needs: one tensor is kept
    for it instead of x, Phi(x) and the density. Without a backward pass the compiler leaves it out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.normal_cdf = NormalCdf()

    def construct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        cdf = self.normal_cdf(x)
        density = ops.exp(ops.square(x) * -0.5 - 0.5 * math.log(2 * math.pi))
        return x * cdf, cdf + x * density

    def bprop(self, x: Tensor, out: tuple[Tensor, Tensor], dout: tuple[Tensor, Tensor]) -> tuple[Tensor]:
        return (dout[0] * out[1],)


class GELU(nn.Cell):
    """x * Phi(x), the exact form (Hendrycks and Gimpel), not the tanh approximation."""

    def __init__(self) -> None:
        super().__init__()
        self.gelu_and_slope = GeluAndSlope()

    def construct(self, x: Tensor) -> Tensor:
        return self.gelu_and_slope(x)[0]


class Dropout(nn.Cell):
    """Zeroes entries with probability `rate` in training and scales the rest by 1 / (1 - rate).

    The mask is a pure function of (key, counter, position), so that training resumes to the bit; MindSpore's own
    dropout keeps a state that a checkpoint does not restore.

    Args:
        rate: probability of zero, below 1.
        key: distinguishes this Cell from all others of the network, 0 to 2^31 - 1.
        counter: int32 Parameter that the training step advances; None where no Cell of the network drops anything.
    """

    def __init__(self, rate: float, key: int, counter: Optional[Parameter]) -> None:
        super().__init__(auto_prefix=False)
        self.rate = rate
        self.uniform = uniform_numbers(key)
        self.counter = counter

    def construct(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        kept = ops.stop_gradient((self.uniform(x, self.counter) >= self.rate).astype(x.dtype))
        return x * kept * (1 / (1 - self.rate))


def uniform_numbers(key: int) -> nn.Cell:
    """Source of `Dropout`'s random numbers: a Cell (x, counter) -> uniform float32 numbers in [0, 1), shaped as x."""
    return HashedUniform(key) if runs_on_cpu() else SeededUniform(key)


class SeededUniform(nn.Cell):
    """Uniform numbers by the device's generator, started from (key, counter) for each call."""

    def __init__(self, key: int) -> None:
        super().__init__()
        self.uniform = UniformExt()
        self.seed = Tensor(key, ms.int64)

    def construct(self, x: Tensor, counter: Tensor) -> Tensor:
        return self.uniform(x.astype(ms.float32), 0.0, 1.0, self.seed, counter.astype(ms.int64))


class HashedUniform(nn.Cell):
    """The same on a CPU, which has no such operator: a 32-bit integer hash of (key, counter, position).

    Two rounds of xor-shift and multiply, after lowbias32 of C. Wellons. Only for CPUs: it relies on products that wrap
    around, which an Ascend's vector unit may saturate, and on shifts, which an Ascend leaves to its slow AI CPU.
    """

    def __init__(self, key: int) -> None:
        super().__init__()
        self.key = key

    def construct(self, x: Tensor, counter: Tensor) -> Tensor:
        key = _hash(counter * _as_int32(0x9E3779B1) + self.key)
        bits = _hash(ops.arange(x.size).astype(ms.int32) + key)
        return (ops.bitwise_and(bits, 0xFFFFFF).astype(ms.float32) * (1 / 2**24)).reshape(x.shape)


def _as_int32(value: int) -> int:
    """The signed integer with the same 32 bits."""
    return int(np.array(value & 0xFFFFFFFF, np.uint32).astype(np.int32))


def _hash(bits: Tensor) -> Tensor:
    """A bijective mix of 32-bit integers, elementwise."""
    for shift, multiplier in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        bits = ops.bitwise_xor(bits, _shift_right(bits, shift)) * _as_int32(multiplier)
    return ops.bitwise_xor(bits, _shift_right(bits, 15))


def _shift_right(bits: Tensor, count: int) -> Tensor:
    """Logical shift: the sign is not dragged along."""
    return ops.bitwise_and(ops.bitwise_right_shift(bits, count), (1 << (32 - count)) - 1)


class ScaleSamples(nn.Cell):
    """x (B, N, C) times one factor per sample (B, 1), through which no gradient flows.

    A product that broadcasts is four times slower on CPU than a matrix product with ones, so there the factors are
    spread first; once more in the backward pass, where keeping them would take as much memory as keeping x.
    """

    def __init__(self) -> None:
        super().__init__()
        self.spread_first = runs_on_cpu()

    def construct(self, x: Tensor, factors: Tensor) -> Tensor:
        batch, tokens, channels = x.shape
        factors = factors.astype(x.dtype)
        if self.spread_first:
            factors = _MATMUL(factors, ops.ones((1, tokens * channels), x.dtype))  # (B, N * C)
            return x * factors.reshape((batch, tokens, channels))
        return x * factors.reshape((batch, 1, 1))

    def bprop(self, x: Tensor, factors: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        spread_again = ops.depend(factors, dout)  # else the compiler would keep what it spread on the way forward
        return self.construct(dout, spread_again), ops.zeros_like(factors)


class DropPath(nn.Cell):
    """Stochastic depth (Huang et al. 2016): a branch (B, N, C) times one factor per sample (B, 1).

    The factors are 0 with probability `rate`, else 1 / (1 - rate). They are an input, drawn on the host
    (focal/data/transforms/drop_path.py), because no random operator of a device can be resumed from a checkpoint.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.scale_samples = ScaleSamples()

    def construct(self, x: Tensor, factors: Optional[Tensor]) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        return self.scale_samples(x, factors)


class Mlp(nn.Cell):
    """Two dense layers with GELU between, on (B, N, C)."""

    def __init__(self, channels: int, hidden: int, dropouts: tuple[Dropout, Dropout]) -> None:
        super().__init__()
        self.fc1 = dense(channels, hidden)
        self.act = GELU()
        self.fc2 = dense(hidden, channels)
        self.drop1, self.drop2 = dropouts

    def construct(self, x: Tensor) -> Tensor:
        x = self.drop1(self.act(self.fc1(x)))  # (B, N, hidden)
        return self.drop2(self.fc2(x))  # (B, N, C)


class PatchEmbed(nn.Cell):
    """Map (B, C_in, H, W) -> tokens (B, H' * W', C_out) in raster order; stem and downsampling (PatchEmbed upstream).

    Args:
        in_channels, channels: C_in, C_out.
        patch_size: kernel and stride without `use_conv_embed`; with it, the stem is 7x7 / 4 padded by 2 and a
            downsampling 3x3 / 2 padded by 1.
        is_stem: first layer of the network.
        norm: LayerNorm after the projection; pre_norm: GroupNorm(1) before it.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        patch_size: int,
        use_conv_embed: bool,
        is_stem: bool,
        norm: bool = True,
        pre_norm: bool = False,
    ) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = patch_geometry(patch_size, use_conv_embed, is_stem)
        self.proj = conv2d(in_channels, channels, self.kernel, self.stride, self.padding)
        self.pre_norm: Optional[nn.Cell] = nn.GroupNorm(1, in_channels, eps=1e-5) if pre_norm else None
        self.norm: Optional[nn.Cell] = LayerNorm(channels) if norm else None

    def construct(self, x: Tensor) -> Tensor:
        if self.pre_norm is not None:
            x = self.pre_norm(x)
        x = self.proj(x)  # (B, C_out, H', W')
        batch, channels, height, width = x.shape
        x = x.reshape((batch, channels, height * width)).transpose((0, 2, 1))  # (B, H' * W', C_out)
        if self.norm is not None:
            x = self.norm(x)
        return x


def patch_geometry(patch_size: int, use_conv_embed: bool, is_stem: bool) -> tuple[int, int, int]:
    """Kernel, stride and padding of a `PatchEmbed`."""
    if not use_conv_embed:
        return (patch_size, patch_size, 0)
    return (7, 4, 2) if is_stem else (3, 2, 1)


def patch_output_hw(hw: tuple[int, int], kernel: int, stride: int, padding: int) -> tuple[int, int]:
    """Height and width of the map after a `PatchEmbed`."""
    return tuple((size + 2 * padding - kernel) // stride + 1 for size in hw)
