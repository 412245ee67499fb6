"""Building blocks of the network: patch embedding, MLP with exact GELU, drop path, and dropout that can be resumed.

Shape legend: B batch; N tokens; C channels; H, W height and width of a map.
"""

from __future__ import annotations

import math
import zlib
from typing import Optional

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.ops.auto_generate import GeluExt

from focal.config.schema import ModelConfig
from focal.models.ascend_forms import AscendForm, Dense, LayerNorm, has_newer_kernels
from focal.models.convolution import ConvolveToTokens
from focal.models.cpu_forms import NormalCdf, ScaleSamples, SplitRows, UniformNumbers

RANDOM_COUNTER = "random_counter"  # parameter of a network in training: the position in the sequence of random masks


class GELU(nn.Cell, AscendForm):
    """x * Phi(x), the exact form (Hendrycks and Gimpel 2016), not the tanh approximation.

    On an Ascend, CANN's kernels aclnnGeluV2 and aclnnGeluBackwardV2. Not the primitive GeLU, which is aclnnGelu there:
    the tanh approximation, by CANN's documentation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.for_ascend = has_newer_kernels()
        self.gelu_and_slope = GeluAndSlope()
        self.gelu = GeluExt()

    def construct(self, x: Tensor) -> Tensor:
        if self.for_ascend:
            return self.gelu(x, "none")
        return self.gelu_and_slope(x)[0]


class GeluAndSlope(nn.Cell):
    """x * Phi(x) and its derivative Phi(x) + x * phi(x), where phi is the normal density.

    The forward pass computes the derivative because the backward pass needs nothing else: one tensor is kept instead of
    x, Phi(x) and the density. Where there is no backward pass, the compiler removes it.
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


class Dropout(nn.Cell):
    """Zeroes entries with probability `rate` in training and scales the others by 1 / (1 - rate).

    The mask is a pure function of (key, counter, position), so that training resumes to the bit; MindSpore's own
    dropout keeps a state that a checkpoint does not restore.

    Args:
        rate: probability of zero, below 1.
        key: distinguishes this Cell from all others of the network, 0 to 2^31 - 1.
        counter: int32 Parameter that the training step advances; None if no Cell of the network drops anything.
    """

    def __init__(self, rate: float, key: int, counter: Optional[Parameter]) -> None:
        super().__init__(auto_prefix=False)
        self.rate = rate
        self.uniform = UniformNumbers(key)
        self.counter = counter

    def construct(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        kept = ops.stop_gradient((self.uniform(x, self.counter) >= self.rate).astype(x.dtype))
        return x * kept * (1 / (1 - self.rate))


class DropoutSource:
    """Makes the network's dropout Cells: each has a key of its own, and all share one counter.

    Attributes:
        counter: None if both dropout rates of the network are 0, as in every published recipe.
    """

    def __init__(self, model: ModelConfig, seed: int) -> None:
        self.seed = seed
        self.counter: Optional[Parameter] = None
        if model.drop_rate or model.attn_drop_rate:
            self.counter = Parameter(Tensor(0, ms.int32), name=RANDOM_COUNTER, requires_grad=False)

    def dropout(self, name: str, rate: float) -> Dropout:
        """The dropout Cell called `name`, which its key is derived from."""
        # Without a rate the key is never used; a common one lets blocks share their graph (shared_graphs.py).
        key = zlib.crc32(f"{self.seed}/{name}".encode()) & 0x7FFFFFFF if rate else 0
        return Dropout(rate, key, self.counter)


class DropPathFactors(nn.Cell):
    """Factors of drop path for all branches (2 * blocks, B) -> for each branch a row (1, B).

    A Cell, so that apply_precision has all factors cast at once, not each in its branch and in that branch's gradient.
    """

    def __init__(self, branches: int) -> None:
        super().__init__()
        self.split_rows, self.one_each = SplitRows(), (1,) * branches

    def construct(self, factors: Tensor) -> tuple[Tensor, ...]:
        return self.split_rows(factors, self.one_each)


class DropPath(nn.Cell):
    """Stochastic depth (Huang et al. 2016): a branch (B, N, C) times one factor per sample (B, 1).

    The factors are 0 with probability `rate`, else 1 / (1 - rate). They are an input, drawn on the host
    (focal/data/transforms/drop_path.py), because no random operator of a device can be resumed from a checkpoint.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.drops = rate > 0.0  # all that the graph depends on, so that blocks of different rates can share one
        self.scale_samples = ScaleSamples()

    def construct(self, x: Tensor, factors: Optional[Tensor]) -> Tensor:
        if not self.drops or not self.training:
            return x
        return self.scale_samples(x, factors)


class Mlp(nn.Cell):
    """Two dense layers with a GELU between them."""

    def __init__(self, channels: int, hidden: int, drop1: Dropout, drop2: Dropout) -> None:
        super().__init__()
        self.fc1 = Dense(channels, hidden)
        self.act = GELU()
        self.fc2 = Dense(hidden, channels)
        self.drop1, self.drop2 = drop1, drop2

    def construct(self, x: Tensor) -> Tensor:
        x = self.drop1(self.act(self.fc1(x)))  # (B, N, hidden)
        return self.drop2(self.fc2(x))  # (B, N, C)


class PatchEmbed(nn.Cell):
    """The stem and the downsampling of a stage: map (B, C_in, H, W) -> tokens (B, H' * W', C_out) in raster order.

    Args:
        in_channels, channels: C_in, C_out.
        kernel, stride, padding: of the convolution, see `StageSettings.convolution`.
        size: H, W.
        norm: apply LayerNorm after the convolution.
        pre_norm: apply GroupNorm with one group before it.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel: int,
        stride: int,
        padding: int,
        size: tuple[int, int],
        norm: bool = True,
        pre_norm: bool = False,
    ) -> None:
        super().__init__()
        self.proj = ConvolveToTokens(in_channels, channels, kernel, stride, padding, *size)
        self.pre_norm: Optional[nn.GroupNorm] = nn.GroupNorm(1, in_channels, eps=1e-5) if pre_norm else None
        self.norm: Optional[LayerNorm] = LayerNorm(channels) if norm else None

    def construct(self, x: Tensor) -> Tensor:
        if self.pre_norm is not None:
            x = self.pre_norm(x)
        x = self.proj(x)  # (B, H' * W', C_out)
        if self.norm is not None:
            x = self.norm(x)
        return x
