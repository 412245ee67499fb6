"""Operations with newer kernels on an Ascend, under other names: `use_ascend_forms` switches them all.

Where MindSpore launches kernel by kernel (jit_level O0 and O1), a primitive decides which library of CANN computes it.
Those that MindSpore's layers take (Gather, LayerNorm, Conv2D, BiasAdd) have kernels in the older one only (`acl`),
which cost the host more for each launch; the newer one (`aclnn`) is behind the primitives used here, some of which also
replace several. They have no kernel on a CPU or a GPU, and GE, CANN's compiler of whole graphs (jit_level O2, which
the 910A defaults to), does not know most of them. So each Cell has both forms, which compute the same.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn, ops
from mindspore.ops.auto_generate import Dense as DenseProduct
from mindspore.ops.auto_generate import IndexSelect, LayerNormExt, MeanExt

from focal.distributed.chip import ascend_chip
from focal.models.cpu_forms import CpuForm, LayerNormOfRows


class AscendForm:
    """Mixin of the Cells that have two forms.

    Attributes:
        for_ascend: take the primitives with newer kernels.
    """

    for_ascend: bool


def has_newer_kernels() -> bool:
    """Whether the current device is an Ascend that runs kernel by kernel: not a 910A, and not told to use GE."""
    if ms.get_context("device_target") != "Ascend" or ms.get_context("jit_level") == "O2":
        return False
    return ascend_chip() != "ascend910"


def use_ascend_forms(network: nn.Cell, enabled: bool) -> None:
    """Choose the form of every such Cell in `network`, which must not have been compiled yet."""
    for _, cell in network.cells_and_names():
        if isinstance(cell, AscendForm):
            cell.for_ascend = enabled


class TakeRows(nn.Cell, AscendForm):
    """Rows of x along `axis` by a flat index: `numpy.take(x, index, axis)`.

    Its own gradient is a scatter in both forms. Where x holds activations, wrap it in a Cell with a gradient by
    gathers, as GatherRows does (focal_attention.py).
    """

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.for_ascend = has_newer_kernels()
        self.axis = axis
        self.index_select, self.gather = IndexSelect(), ops.Gather()

    def construct(self, x: Tensor, index: Tensor) -> Tensor:
        if self.for_ascend:
            return self.index_select(x, self.axis, index)
        return self.gather(x, index, self.axis)


class TokenMean(nn.Cell, AscendForm):
    """Mean over tokens, (B, N, C) -> (B, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.for_ascend = has_newer_kernels()
        self.mean = MeanExt()

    def construct(self, x: Tensor) -> Tensor:
        if self.for_ascend:
            return self.mean(x, (1,), False, None)
        return x.mean(1)


class Dense(nn.Dense, AscendForm):
    """nn.Dense without MindSpore's random initialisation: initialization.py sets all values.

    On an Ascend product and bias are one kernel. A CPU has that primitive as well, but is slower with it in inference:
    69 instead of 45 ms for the qkv of the first stage at batch 8 on 2 cores.
    """

    def __init__(self, in_channels: int, out_channels: int, has_bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, weight_init="zeros", bias_init="zeros", has_bias=has_bias)
        self.for_ascend = has_newer_kernels()
        self.product_and_bias = DenseProduct()

    def construct(self, x: Tensor) -> Tensor:
        if self.for_ascend:
            return self.product_and_bias(x, self.weight, self.bias)
        return super().construct(x)


class LayerNorm(nn.LayerNorm, AscendForm, CpuForm):
    """nn.LayerNorm over the channels with PyTorch's epsilon."""

    def __init__(self, channels: int) -> None:
        super().__init__((channels,), epsilon=1e-5)  # type: ignore[call-arg]  # for mypy, MindSpore has no types
        self.for_ascend = has_newer_kernels()
        self.normalize = LayerNormExt()
        self.normalize_rows = LayerNormOfRows(channels, self.epsilon)

    def construct(self, x: Tensor) -> Tensor:
        if self.for_ascend:
            return self.normalize(x, self.normalized_shape, self.gamma, self.beta, self.epsilon)[0]
        if self.for_cpu:
            return self.normalize_rows(x, self.gamma.astype(x.dtype), self.beta.astype(x.dtype))[0]
        return super().construct(x)
