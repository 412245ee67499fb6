"""Operations that are slow or missing on MindSpore's CPU, with a faster form for it: `use_cpu_forms` switches them all.

Both forms of a Cell compute the same. The docstrings give the formula, which is what accelerators and exported files
run; the CPU's form avoids kernels that are slow or missing there, mostly by spreading values with a matrix product.
Everything else in the network is the same on every device.

Shape legend: B batch; N tokens; C channels; K keys.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.ops.auto_generate import SoftmaxBackward, SplitWithSize, SumExt, UniformExt

from focal.distributed.versions import release_number

_MATMUL = ops.MatMul()  # the function ops.matmul unfolds into a dozen nodes for the compiler
_SUM = SumExt()  # the function ops.sum unfolds as well


class CpuForm(nn.Cell):
    """Base of the Cells that have two forms. A network is built with the forms for the current device target."""

    def __init__(self) -> None:
        super().__init__()
        self.for_cpu: bool = ms.get_context("device_target") == "CPU"


def use_cpu_forms(network: nn.Cell, enabled: bool) -> None:
    """Choose the form of every such Cell in `network`, which must not have been compiled yet."""
    for _, cell in network.cells_and_names():
        if isinstance(cell, CpuForm):
            cell.for_cpu = enabled


class AddToSamples(CpuForm):
    """x (B, ...) + addend (1, ...).

    On a CPU an addition that broadcasts runs at a tenth of the speed of one that does not, so the addend is repeated.
    """

    def construct(self, x: Tensor, addend: Tensor) -> Tensor:
        if self.for_cpu and self.training:
            # A product with ones repeats as fast as tile, and its gradient, a product too, beats the sum over samples.
            addend = _MATMUL(ops.ones((x.shape[0], 1), addend.dtype), addend.reshape((1, -1))).reshape(x.shape)
        elif self.for_cpu:
            addend = ops.tile(addend, (x.shape[0],) + (1,) * (x.ndim - 1))
        return x + addend

    def sum_samples(self, gradient: Tensor) -> Tensor:
        """Gradient of the sum (B, ...) -> gradient of the addend (1, ...), float32."""
        if self.for_cpu:
            gradient = gradient.astype(ms.float32)
            ones = ops.ones((1, gradient.shape[0]), gradient.dtype)
            summed = _MATMUL(ones, gradient.reshape((gradient.shape[0], -1)))
            return summed.reshape((1,) + gradient.shape[1:])
        return _SUM(gradient, (0,), True, ms.float32)


class ScaleSamples(CpuForm):
    """x (B, N, C) times one factor per sample (B, 1), through which no gradient flows.

    On a CPU a product that broadcasts is four times slower than a matrix product with ones, so the factors are spread
    first. The backward pass spreads them again: keeping them would take as much memory as keeping x.
    """

    def construct(self, x: Tensor, factors: Tensor) -> Tensor:
        batch, tokens, channels = x.shape
        factors = factors.astype(x.dtype)
        if self.for_cpu:
            factors = _MATMUL(factors, ops.ones((1, tokens * channels), x.dtype))  # (B, N * C)
            return x * factors.reshape((batch, tokens, channels))
        return x * factors.reshape((batch, 1, 1))

    def bprop(self, x: Tensor, factors: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        spread_again = ops.depend(factors, dout)  # otherwise the compiler would keep what the forward pass spread
        return self.construct(dout, spread_again), ops.zeros_like(factors)


class LayerNormOfRows(nn.Cell):
    """Layer normalisation over the last axis of x (..., C), with a gradient by matrix products.

    MindSpore's LayerNormGrad takes three to four times as long on a CPU, more than any other operation but the matrix
    products. With x^ = (x - mean) / deviation and d = dout * gamma (Ba, Kiros and Hinton 2016, differentiated):
    dx = (d - mean(d) - x^ * mean(d * x^)) / deviation, dgamma = sum(dout * x^) and dbeta = sum(dout) over all rows.
    """

    def __init__(self, channels: int, epsilon: float) -> None:
        super().__init__()
        self.channels, self.epsilon = channels, epsilon
        self.layer_norm = ops.LayerNorm(-1, -1, epsilon)
        self.product_over_rows = ops.MatMul(transpose_a=True)

    def construct(self, x: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (..., C), gamma and beta (C,) -> normalised x; and for `bprop` means and variances of rows (..., 1)."""
        return self.layer_norm(x, gamma, beta)

    def bprop(
        self, x: Tensor, gamma: Tensor, beta: Tensor, out: tuple[Tensor, ...], dout: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        channels = self.channels
        mean = out[1].reshape((-1, 1)).astype(ms.float32)  # (R, 1), where R rows are all axes but the last
        inverse = 1.0 / ops.sqrt(out[2].reshape((-1, 1)).astype(ms.float32) + self.epsilon)  # (R, 1)
        gradient = dout[0].reshape((-1, channels)).astype(ms.float32)  # (R, C)
        centred = x.reshape((-1, channels)).astype(ms.float32) - mean  # (R, C)
        correlated, scale = gradient * centred, gamma.astype(ms.float32)
        dgamma = self.product_over_rows(inverse, correlated)  # (1, C)
        dbeta = _MATMUL(ops.ones((1, gradient.shape[0]), ms.float32), gradient)  # (1, C)
        column = scale.reshape((channels, 1)) * (1 / channels)
        shift = _MATMUL(gradient, column) * inverse  # (R, 1): mean(d) / deviation
        slope = _MATMUL(correlated, column) * inverse * inverse * inverse  # (R, 1): mean(d * x^) / variance
        dx = gradient * scale.reshape((1, channels)) * inverse - centred * slope - shift
        dgamma, dbeta = dgamma.reshape((channels,)).astype(gamma.dtype), dbeta.reshape((channels,)).astype(beta.dtype)
        return dx.reshape(x.shape).astype(x.dtype), dgamma, dbeta


class SoftmaxGradient(CpuForm):
    """Gradient of softmax over the last axis: (dout - sum(dout * out)) * out, the sum over each row; all (..., K).

    On a CPU, MindSpore subtracts the sums by broadcasting, which is slow and keeps a table of 16 bytes per number for
    as long as the graph lives; so they are spread by a product with ones.
    """

    def __init__(self) -> None:
        super().__init__()
        self.softmax_backward = SoftmaxBackward()

    def construct(self, dout: Tensor, out: Tensor) -> Tensor:
        if self.for_cpu:
            products = (dout * out).reshape((-1, out.shape[-1]))
            sums = _MATMUL(products, ops.ones((out.shape[-1], 1), out.dtype))
            sums = _MATMUL(sums, ops.ones((1, out.shape[-1]), out.dtype)).reshape(out.shape)  # (..., K)
            return (dout - sums) * out
        return self.softmax_backward(dout, out, -1)


# Phi(x) = sigmoid(x * P(x^2)): P is fitted (Lawson's weighted least squares, in double precision) to the logit of the
# normal distribution on |x| <= 7. Largest error of x * Phi(x): 6.6e-8, of Phi: 1.1e-7; test_cpu_forms.py checks both.
_LOGIT_POLYNOMIAL = (
    1.59576854e00,
    7.26682922e-02,
    -6.60489606e-05,
    -1.10548094e-04,
    7.94832129e-06,
    -2.67577479e-07,
    3.62810256e-09,
)


class NormalCdf(CpuForm):
    """Phi(x) = (1 + erf(x / sqrt(2))) / 2, the distribution function of the standard normal, elementwise.

    On a CPU, MindSpore's Erf takes as long as the matrix products of an MLP. A polynomial inside a sigmoid replaces it,
    exact to float32's rounding and computed in float32: float16 can hold neither its coefficients nor its powers.
    """

    def construct(self, x: Tensor) -> Tensor:
        if self.for_cpu:
            dtype, x = x.dtype, x.astype(ms.float32)
            square = ops.square(x)
            logit = square * _LOGIT_POLYNOMIAL[-1] + _LOGIT_POLYNOMIAL[-2]
            for coefficient in _LOGIT_POLYNOMIAL[-3::-1]:
                logit = logit * square + coefficient
            return ops.sigmoid(logit * x).astype(dtype)
        return 0.5 + 0.5 * ops.erf(x * math.sqrt(0.5))


class SplitRows(CpuForm):
    """x (R, ...) -> parts of the given numbers of rows, one after the other.

    An Ascend has a newer kernel for SplitWithSize than for Split. MindSpore 2.7 has none for a CPU in compiled graphs:
    there ops.split takes a slice for each part.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_slices = self.for_cpu and release_number(ms.__version__) < (2, 8)
        self.split_with_size = SplitWithSize()

    def construct(self, x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
        if self.by_slices:
            return ops.split(x, sizes, 0)
        return self.split_with_size(x, sizes, 0)


class UniformNumbers(CpuForm):
    """Uniform float32 numbers in [0, 1) of x's shape: a pure function of (key, counter, position).

    Accelerators start their own generator from (key, counter) in each call. A CPU has no such operator and takes a
    32-bit integer hash of (key, counter, position): two rounds of xor-shift and multiply, after lowbias32 of
    C. Wellons. The hash is for CPUs only: it relies on products that wrap around, which an Ascend's vector unit may
    saturate, and on shifts, which an Ascend leaves to its slow AI CPU.

    Args:
        key: 0 to 2^31 - 1.
    """

    def __init__(self, key: int) -> None:
        super().__init__()
        self.key = key
        self.seed = Tensor(key, ms.int64)
        self.uniform = UniformExt()

    def construct(self, x: Tensor, counter: Tensor) -> Tensor:
        if self.for_cpu:
            key = _hash(counter * _as_int32(0x9E3779B1) + self.key)
            bits = _hash(ops.arange(x.size).astype(ms.int32) + key)
            return (ops.bitwise_and(bits, 0xFFFFFF).astype(ms.float32) * (1 / 2**24)).reshape(x.shape)
        return self.uniform(x.astype(ms.float32), 0.0, 1.0, self.seed, counter.astype(ms.int64))


def _as_int32(value: int) -> int:
    """The signed integer with the same 32 bits."""
    return int(np.array(value & 0xFFFFFFFF, np.uint32).astype(np.int32))


def _hash(bits: Tensor) -> Tensor:
    """A bijective mix of 32-bit integers, elementwise."""
    for shift, multiplier in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        bits = ops.bitwise_xor(bits, _shift_right(bits, shift)) * _as_int32(multiplier)
    return ops.bitwise_xor(bits, _shift_right(bits, 15))


def _shift_right(bits: Tensor, count: int) -> Tensor:
    """A logical shift: zeros move in from the left, whatever the sign."""
    return ops.bitwise_and(ops.bitwise_right_shift(bits, count), (1 << (32 - count)) - 1)
