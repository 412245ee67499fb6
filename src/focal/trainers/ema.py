"""Exponential moving average of the weights, inside the compiled step."""

from __future__ import annotations

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from focal.checkpoint.files import EMA_PREFIX


class Ema(nn.Cell):
    """EMA weight = decay * EMA weight + (1 - decay) * weight after each step, in float32.

    Args:
        parameters: the trained parameters; the EMA weights start as a copy of them.
        decay: per step.
        warmup: use min(decay, (1 + t) / (10 + t)) at step t (counted from 1), so that the EMA of a short training is
            not dominated by its random start (the rule of TensorFlow's ExponentialMovingAverage with num_updates).
    """

    def __init__(self, parameters: ParameterTuple, decay: float, warmup: bool) -> None:
        super().__init__()
        self.parameters_to_average = parameters
        self.averages = parameters.clone(prefix=EMA_PREFIX, init="same")
        for average in self.averages:
            average.requires_grad = False
        self.rate = 1.0 - decay  # in float64: 1 - 0.99992 in float32 would have a relative error of 1e-3
        self.warmup = warmup
        self.for_each = ops.HyperMap()

    def construct(self, finite: Tensor, updates: Tensor) -> Tensor:
        """Move the EMA weights towards the weights, or not at all.

        Args:
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
        moved = self.for_each(ops.partial(_approach, rate), self.averages, self.parameters_to_average)
        return ops.depend(rate, moved)


def _approach(rate: Tensor, average: Parameter, parameter: Parameter) -> Tensor:
    return ops.assign_add(average, (parameter - average) * rate)
