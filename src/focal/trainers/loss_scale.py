"""The factor on the loss that keeps small float16 gradients from vanishing, and the rules for changing it."""

from __future__ import annotations

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

SMALLEST_SCALE = 1.0
LARGEST_SCALE = float(2**24)  # far beyond float16's range; doubling it further is useless


class LossScale(nn.Cell):
    """A dynamic (or fixed) loss scale whose state is Parameters, so that it lives in the graph and in checkpoints.

    `mindspore.amp.DynamicLossScaler` follows the same rules but is not a Cell: its values are not Parameters of the
    training step, so they would be neither saved nor broadcast.

    Args:
        initial: first value of the scale; powers of two multiply without rounding.
        dynamic: False keeps the scale constant.
        window: finite steps in a row before the scale doubles.
    """

    def __init__(self, initial: float, dynamic: bool, window: int) -> None:
        super().__init__()
        self.dynamic = dynamic
        self.window = window
        self.value = Parameter(Tensor(initial, ms.float32), name="loss_scale.value", requires_grad=False)
        self.good_steps = Parameter(Tensor(0, ms.int32), name="loss_scale.good_steps", requires_grad=False)
        self.bad_steps = Parameter(Tensor(0, ms.int32), name="loss_scale.bad_steps", requires_grad=False)

    def construct(self, finite: Tensor) -> Tensor:
        """Count one step and adapt the scale.

        Args:
            finite: scalar bool, whether the step was finite on all ranks.

        Returns:
            Scalar int32: non-finite steps in a row, this one included.
        """
        good_steps = ops.select(finite, self.good_steps + 1, ops.zeros_like(self.good_steps))
        bad_steps = ops.select(finite, ops.zeros_like(self.bad_steps), self.bad_steps + 1)
        if self.dynamic:
            full = good_steps >= self.window
            doubled = ops.select(full, ops.minimum(self.value * 2.0, LARGEST_SCALE), self.value + 0.0)
            halved = ops.maximum(self.value * 0.5, SMALLEST_SCALE)
            ops.assign(self.value, ops.select(finite, doubled, halved))
            good_steps = ops.select(full, ops.zeros_like(good_steps), good_steps)
        ops.assign(self.good_steps, good_steps)
        ops.assign(self.bad_steps, bad_steps)
        return bad_steps
