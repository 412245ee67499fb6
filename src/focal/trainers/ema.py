"""Exponential moving average of the weights, inside the compiled step."""

from __future__ import annotations

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

from focal.checkpoint.files import EMA_PREFIX
from focal.checkpoint.train_state import FlatBuffer
from focal.trainers.buckets import Buckets


class Ema(nn.Cell):
    """EMA weight = decay * EMA weight + (1 - decay) * weight after each step, in float32.

    Args:
        buckets: of the trained parameters; the EMA weights start as a copy of them.
        decay: per step.
        warmup: use min(decay, (1 + t) / (10 + t)) at step t (counted from 1), so that the EMA of a short training is
            not dominated by its random start (the rule of TensorFlow's ExponentialMovingAverage with num_updates).
    """

    def __init__(self, buckets: Buckets, decay: float, warmup: bool) -> None:
        super().__init__(auto_prefix=False)
        self.buckets = buckets
        self.parameters_to_average = buckets.parameters
        self.vectors = buckets.weights("ema")
        self.rate = 1.0 - decay  # in float64: 1 - 0.99992 in float32 would have a relative error of 1e-3
        self.warmup = warmup
        self.for_each = ops.HyperMap()

    def buffers(self) -> list[FlatBuffer]:
        """The EMA weights under their names in a checkpoint, `ema.NAME`."""
        return self.buckets.buffers(self.vectors, EMA_PREFIX)

    @property
    def averages(self) -> list[Parameter]:
        """A copy of each EMA weight, in the order of `parameters_to_average`."""
        return [
            Parameter(Tensor(value), name, requires_grad=False)
            for buffer in self.buffers()
            for name, value in buffer.tensors().items()
        ]

    def construct(self, weights: tuple, finite: Tensor, updates: Tensor) -> Tensor:
        """Move the EMA weights towards the weights, or not at all.

        Args:
            weights: one vector per bucket.
            finite: scalar bool; False leaves every EMA weight as it is, to the bit.
            updates: scalar int32, steps done so far, this one included.

        Returns:
            Scalar float32: 1 - decay of this step.
        """
        rate = Tensor(self.rate, ms.float32)
        if self.warmup:
            # 1 - (1 + t) / (10 + t) = 9 / (10 + t)
            rate = ops.maximum(rate, 9.0 / (10.0 + updates.astype(ms.float32)))
        rate = ops.select(finite, rate, ops.zeros_like(rate))
        moved = self.for_each(ops.partial(_approach, rate), self.vectors, weights)
        return ops.depend(rate, moved)


def _approach(rate: Tensor, average: Parameter, weight: Tensor) -> Tensor:
    return ops.assign_add(average, (weight - average) * rate)
