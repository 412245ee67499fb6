"""The training step: one Cell, compiled once, in this order and no other:

    forward, loss * scale -> gradients -> (/ scale, accumulate) -> all-reduce, once -> finite? agreed over ranks
    -> / scale, mean, clip by global norm -> optimizer -> average of the weights -> loss scale

The factors of one over the scale, of the means over micro-batches and ranks, and of the clipping are scalars; they are
multiplied first, so that the gradients are multiplied once.

A non-finite update changes nothing but the loss scale, its counters, the place in the schedule and the counter behind
the network's random masks. There is no branch on the device for it: gradients become zeros, rates zero, betas one.
"""

from __future__ import annotations

import dataclasses
from typing import Optional

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from focal.config.schema import StepConfig
from focal.distributed.collectives import gradient_all_reduces
from focal.trainers.ema import Ema
from focal.trainers.gradients import Accumulator, OverflowCheck, clip_factor, global_norm, scale_or_zero, to_float32
from focal.trainers.loss_scale import LossScale
from focal.trainers.losses import NetworkWithLoss
from focal.trainers.optimizer import Optimizer

OUTPUTS = ("updated", "loss", "grad_norm", "lr", "scale", "nonfinite", "nonfinite_in_a_row")


@dataclasses.dataclass(frozen=True)
class Ranks:
    """This process among those that train together."""

    rank: int = 0
    world_size: int = 1


class TrainOneStep(nn.Cell):
    """One micro-batch in; with the last one of an update, one update of the weights.

    Args:
        network: images (B, 3, H, W) -> logits (B, C).
        loss: logits, targets (B, C) -> scalar mean over the batch.
        optimizer: holds the trained parameters.
        step: loss scale, clipping, accumulation, averaging.
        ranks: with more than one, the process group must be initialised.
    """

    def __init__(
        self, network: nn.Cell, loss: nn.Cell, optimizer: Optimizer, step: StepConfig, ranks: Ranks = Ranks()
    ) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.network_with_loss = NetworkWithLoss(network, loss)
        self.optimizer = optimizer
        weights = optimizer.parameters_to_train
        self.loss_scale = LossScale(step.loss_scale, step.is_dynamic_loss_scale, step.scale_window)
        self.overflow_check = OverflowCheck()
        self.micro_batches = step.accumulation_step
        self.accumulator = Accumulator(weights, step.accumulation_step) if step.accumulation_step > 1 else None
        self.ema = Ema(weights, step.ema_decay, step.ema_warmup) if step.enable_ema else None
        self.clip_limit = step.clip_global_norm_value if step.use_global_norm else None
        self.world_size = ranks.world_size
        self.all_reduce_sum = ops.AllReduce(ops.ReduceOp.SUM) if ranks.world_size > 1 else None
        sizes = [4 * weight.size for weight in weights]
        self.gradient_sums = gradient_all_reduces(sizes) if ranks.world_size > 1 else ()
        self.random_counter = _random_counter(network, ranks.rank)
        self.value_and_grad = ops.value_and_grad(self.scaled_loss, None, weights, has_aux=True)
        self.set_train()

    def construct(self, images: Tensor, targets: Tensor) -> tuple:
        """Train on images (B, 3, H, W) and targets (B, C). Returns scalar float32 tensors, named by `OUTPUTS`.

        `updated` is 0 while micro-batches of an update are still to come; the other values then say nothing.
        """
        images = self.overflow_check.start(images)
        (_, loss), gradients = self.value_and_grad(images, targets)
        overflow = self.overflow_check.read(gradients)
        gradients, unscaling = to_float32(gradients), 1.0 / self.loss_scale.value
        if self.random_counter is not None:
            ops.assign_add(self.random_counter, Tensor(self.world_size, ms.int32))
        if self.accumulator is None:
            return self.update(gradients, unscaling, loss, overflow)
        zero = Tensor(0.0, ms.float32)
        outputs = (zero, zero, zero, zero, zero, zero, zero)
        if self.accumulator(gradients, unscaling, loss, overflow):
            outputs = self.update(*self.accumulator.sums_and_means())
            self.accumulator.reset()
        return outputs

    def scaled_loss(self, images: Tensor, targets: Tensor) -> tuple:
        loss = self.network_with_loss(images, targets)
        return loss * self.loss_scale.value, loss

    def update(self, gradients: tuple, factor: Tensor, loss: Tensor, overflow: Tensor) -> tuple:
        """Update the weights by `gradients` times `factor` (scalar); returns what `construct` does."""
        gradients = self.sum_over_ranks(gradients)
        factor = factor * (1.0 / self.world_size)
        norm = global_norm(gradients) * factor
        finite, loss = self.agree_finite(norm, loss, overflow)
        if self.clip_limit is not None:
            factor = factor * clip_factor(norm, self.clip_limit)
        gradients = scale_or_zero(gradients, factor, finite)
        rate = self.optimizer.current_rate()
        scale = self.loss_scale.value + 0.0
        updates = self.optimizer(gradients, finite)
        if self.ema is not None:
            self.ema(finite, updates)
        in_a_row = self.loss_scale(finite)
        nonfinite = 1.0 - finite.astype(ms.float32)
        return Tensor(1.0, ms.float32), loss, norm, rate, scale, nonfinite, in_a_row.astype(ms.float32)

    def sum_over_ranks(self, gradients: tuple) -> tuple:
        """Sum over ranks: the one place where gradients cross devices."""
        if self.all_reduce_sum is None:
            return gradients
        sums = ()
        for i in range(len(gradients)):
            sums += (self.gradient_sums[i](gradients[i]),)
        return sums

    def agree_finite(self, norm: Tensor, loss: Tensor, overflow: Tensor) -> tuple:
        """Scalar bool, the same on every rank: was everything finite, everywhere? And the mean loss over ranks."""
        bad = overflow + 1.0 - ops.isfinite(norm + loss).astype(ms.float32)
        if self.all_reduce_sum is not None:
            summed = self.all_reduce_sum(ops.stack((bad, loss)))
            bad, loss = summed[0], summed[1] * (1.0 / self.world_size)
        return bad == 0, loss


def _random_counter(network: nn.Cell, rank: int) -> Optional[Parameter]:
    """The network's counter behind drop path and dropout, started at this rank's number; None if it has none."""
    counter = getattr(network, "random_counter", None)
    if counter is not None:
        counter.set_data(Tensor(rank, ms.int32))
    return counter


def trained_parameters(network: nn.Cell) -> ParameterTuple:
    """The parameters that training changes: those that require a gradient."""
    return ParameterTuple(network.trainable_params())
