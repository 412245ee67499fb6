"""Networks that break the rules of tools/ascend_dry_run, each built in a dry run in the place of the product's."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from focal.config import Config
from focal.distributed.device import Device


class Lstm(nn.Cell):
    """An operator for CPU and GPU only, which GE does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = ops.operations.nn_ops.LSTM(4, 4, 1, True, False, 0.0)

    def construct(self, x: Tensor, state: Tensor, weights: Tensor) -> Tensor:
        return self.lstm(x, state, state, weights)[0]


def lstm_inputs() -> tuple[Tensor, ...]:
    """Sequence, initial state and weights."""
    return tuple(Tensor(np.ones(shape), ms.float32) for shape in ((2, 1, 4), (1, 1, 4), (144, 1, 1)))


class BreaksEveryRule(nn.Cell):
    """Operators that no chip, only the AI CPU, or only CANN's older path computes, and an all-reduce per tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = Lstm()
        self.layer_norm = ops.LayerNorm()
        self.right_shift = ops.RightShift()
        self.bessel = ops.BesselI0e()
        self.tensors = [Tensor(np.ones(size), ms.float32) for size in (3, 4, 5, 6)]
        self.sum = ops.AllReduce()

    def construct(self, x: Tensor, state: Tensor, weights: Tensor, wide: Tensor, row: Tensor, whole: Tensor) -> tuple:
        hidden = self.lstm(x, state, weights)
        normed = self.layer_norm(wide, row, row)[0]
        summed = tuple(self.sum(self.tensors[i] * x[0, 0, 0]) for i in range(4))
        return (hidden, normed, self.right_shift(whole, whole), self.bessel(x), *summed)


def breaks_every_rule(config: Config, device: Device) -> tuple[nn.Cell, tuple[Tensor, ...]]:
    """A Cell that compiles, and breaks every rule but that it should."""
    del config, device
    wide, row = Tensor(np.ones((4, 8)), ms.float64), Tensor(np.ones(8), ms.float64)  # the chip has no such LayerNorm
    return BreaksEveryRule(), (*lstm_inputs(), wide, row, Tensor(np.ones(4), ms.int32))


def without_adapter(config: Config, device: Device) -> tuple[nn.Cell, tuple[Tensor, ...]]:
    """A Cell that GE cannot take."""
    del config, device
    return Lstm(), lstm_inputs()
