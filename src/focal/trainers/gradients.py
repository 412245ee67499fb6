"""What happens to gradients between the backward pass and the optimizer, all inside the compiled step.

Throughout, `gradients` is a tuple of float32 vectors, one per bucket of trained parameters (buckets.py).
"""

from __future__ import annotations

from typing import Optional

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.ops.operations.math_ops import NPUClearFloatStatusV2, NPUGetFloatStatusV2

from focal.distributed.chip import saturates_on_overflow
from focal.trainers.buckets import Buckets

_MUL_NO_NAN = ops.MulNoNan()
_FOR_EACH = ops.HyperMap()


def global_norm(gradients: tuple) -> Tensor:
    """Float32 L2 norm of all gradients together; finite if and only if all entries and the sum of squares are."""
    return ops.sqrt(as_vector(_FOR_EACH(_square_sum, gradients)).sum())


def _square_sum(gradient: Tensor) -> Tensor:
    return ops.square(gradient).sum()


def as_vector(scalars: tuple) -> Tensor:
    """Scalar tensors -> one vector. By concat: an Ascend has a newer kernel for it than for stack."""
    return ops.concat([scalar.reshape((1,)) for scalar in scalars], 0)


def clip_factor(norm: Tensor, limit: float) -> Tensor:
    """Factor, at most 1, that brings gradients of global norm `norm` down to `limit`.

    The 1e-6 is that of torch.nn.utils.clip_grad_norm_, with which the trajectories in tests/numerics were made.
    """
    return ops.minimum(limit / (norm + 1e-6), Tensor(1.0, ms.float32))


def scale_or_zero(gradients: tuple, factor: Tensor, finite: Tensor) -> tuple:
    """Gradients times `factor`, or zeros if the step is not finite.

    `mul_no_nan` by zero gives zero even for inf and nan, in the same pass that scaling needs anyway.
    """
    factor = ops.select(finite, factor, ops.zeros_like(factor))
    return _FOR_EACH(ops.partial(_times_or_zero, factor), gradients)


def _times_or_zero(factor: Tensor, gradient: Tensor) -> Tensor:
    return _MUL_NO_NAN(gradient, factor)


class OverflowCheck(nn.Cell):
    """Detects overflow on every kind of chip.

    - CPU, GPU and Atlas A2 (910B) compute in INF/NaN mode: an overflow shows as inf or nan in the gradients, hence in
      their global norm, which the step needs anyway. No extra pass over the gradients is needed.
    - Atlas training series (910A), and A2 with MS_ASCEND_CHECK_OVERFLOW_MODE=SATURATION_MODE, clamp to the largest
      float16 instead and raise a status flag of the device: clear it before the forward pass, read it after the
      backward pass (NPUClearFloatStatusV2, NPUGetFloatStatusV2; the order of nn.TrainOneStepWithLossScaleCell).
    """

    def __init__(self) -> None:
        super().__init__()
        self.saturates = saturates_on_overflow()
        if self.saturates:
            self.clear_status = NPUClearFloatStatusV2()
            self.get_status = NPUGetFloatStatusV2()

    def start(self, images: Tensor, after: Optional[Tensor] = None) -> Tensor:
        """Clear the status flag, and return `images`: what is computed from the result comes after that.

        Args:
            images: of any shape.
            after: a result whose own overflows do not count, a teacher's: the flag is cleared when it is there.
        """
        if self.saturates:
            status = Tensor([0] * 8, ms.int32)
            cleared = self.clear_status(status if after is None else ops.depend(status, after))
            images = ops.depend(images, cleared)
        return images

    def read(self, gradients: tuple) -> Tensor:
        """Scalar float32: 1 if the flag was raised while `gradients` were computed, else 0."""
        if self.saturates:
            status = ops.depend(Tensor([0] * 8, ms.int32), gradients)
            status = self.get_status(status)
            return (status != 0).any().astype(ms.float32)
        return Tensor(0.0, ms.float32)


class Accumulator(nn.Cell):
    """Sums of unscaled gradients, losses and overflow flags over the micro-batches of one step.

    Args:
        buckets: of the trained parameters.
        micro_batches: micro-batches per step.
    """

    def __init__(self, buckets: Buckets, micro_batches: int) -> None:
        super().__init__()
        self.micro_batches = micro_batches
        self.sums = buckets.zeros("accumulated")
        self.loss = Parameter(Tensor(0.0, ms.float32), name="accumulated_loss", requires_grad=False)
        self.overflow = Parameter(Tensor(0.0, ms.float32), name="accumulated_overflow", requires_grad=False)
        self.count = Parameter(Tensor(0, ms.int32), name="accumulated_count", requires_grad=False)

    def construct(self, gradients: tuple, unscaling: Tensor, loss: Tensor, overflow: Tensor) -> Tensor:
        """Add one micro-batch; returns a scalar bool, whether the step is complete.

        Args:
            gradients: of the scaled loss.
            unscaling: scalar, one over the loss scale.
            loss: scalar, not scaled.
            overflow: scalar float32, 1 if an overflow was seen.
        """
        _FOR_EACH(ops.partial(_add_product, unscaling), self.sums, gradients)
        ops.assign_add(self.loss, loss)
        ops.assign_add(self.overflow, overflow)
        ops.assign_add(self.count, Tensor(1, ms.int32))
        return self.count >= self.micro_batches

    def sums_and_means(self) -> tuple:
        """Summed gradients of the step, the factor that makes them means, the mean loss, the number of overflows."""
        factor = 1.0 / self.micro_batches
        return self.sums, Tensor(factor, ms.float32), self.loss * factor, self.overflow + 0.0

    def reset(self) -> None:
        """Start the next step from zero; whatever was in the sums, nan included, is gone."""
        _FOR_EACH(_set_zero, self.sums)
        ops.assign(self.loss, Tensor(0.0, ms.float32))
        ops.assign(self.overflow, Tensor(0.0, ms.float32))
        ops.assign(self.count, Tensor(0, ms.int32))


def _add_product(factor: Tensor, total: Parameter, gradient: Tensor) -> Tensor:
    return ops.assign_add(total, gradient * factor)


def _set_zero(total: Parameter) -> Tensor:
    return ops.assign(total, ops.zeros_like(total))
