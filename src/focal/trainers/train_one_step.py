"""The training step: one Cell, compiled once, in this order and no other:

    normalise, erase and mix images -> forward, loss * scale -> gradients, into buckets -> (/ scale, accumulate)
    -> all-reduce, once -> finite? agreed over ranks -> / scale, mean, clip by global norm
    -> optimizer -> EMA of the weights -> loss scale

One over the scale, the means over micro-batches and ranks, and the clipping are scalar factors. They are multiplied
with each other first, so that the gradients are multiplied once.

A step that is not finite changes nothing but the loss scale and its counters, the place in the schedule, and the
counter behind dropout. The device needs no branch for that: gradients become zeros, rates zero and betas one.

With distillation, the teacher's forward pass comes before that of the network, and has no backward pass.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from focal.checkpoint.train_state import TrainState
from focal.config.schema import StepConfig
from focal.distributed.device import Device
from focal.trainers.buckets import BUCKETS
from focal.trainers.ema import Ema
from focal.trainers.gradients import (
    Accumulator,
    OverflowCheck,
    as_vector,
    clip_factor,
    global_norm,
    scale_or_zero,
)
from focal.trainers.loss_scale import LossScale
from focal.trainers.losses import NetworkWithLoss
from focal.trainers.optimizer import Optimizer
from focal.trainers.teacher import TEACHER


class StepOutputs(NamedTuple):
    """Outputs of one call of the step, all float32; fetched from the device as one vector in this order.

    Attributes:
        updated: 1 if the weights were updated, 0 while micro-batches of the step are still to come; the other values
            then mean nothing.
        loss: mean over the step's images, on all ranks.
        grad_norm: global L2 norm of the gradients, before clipping.
        lr: learning rate.
        scale: loss scale used in this step.
        nonfinite: 1 if the step was skipped because a gradient or the loss was not finite.
        nonfinite_in_a_row: skipped steps in a row, this one included.
    """

    updated: float
    loss: float
    grad_norm: float
    lr: float
    scale: float
    nonfinite: float
    nonfinite_in_a_row: float


OUTPUTS = StepOutputs._fields


class TrainOneStep(nn.Cell):
    """Takes one micro-batch; the last micro-batch of a step also updates the weights.

    Args:
        network: images (B, 3, H, W) -> logits (B, C).
        loss: logits, targets (B, C) -> scalar mean over the batch; with a teacher it takes the teacher's logits too.
        optimizer: of the trained parameters.
        step: settings of loss scale, clipping, accumulation and EMA.
        device: this process, by default the only one; with several, the process group must be initialised.
        prepare_images: `PrepareImages`, for batches of a TrainData; not needed for images that are ready.
        teacher: for distillation: images -> logits (B, C), from `build_teacher`. It is no part of the state.
    """

    def __init__(
        self,
        network: nn.Cell,
        loss: nn.Cell,
        optimizer: Optimizer,
        step: StepConfig,
        device: Optional[Device] = None,
        prepare_images: Optional[nn.Cell] = None,
        teacher: Optional[nn.Cell] = None,
    ) -> None:
        super().__init__(auto_prefix=False)
        device = device or Device()
        self.network, self.prepare_images, self.teacher = network, prepare_images, teacher
        self.network_with_loss = NetworkWithLoss(network, loss)
        self.optimizer = optimizer
        self.buckets = optimizer.buckets
        self.loss_scale = LossScale(step.loss_scale, step.is_dynamic_loss_scale, step.scale_window)
        self.overflow_check = OverflowCheck()
        self.micro_batches = step.accumulation_step
        self.accumulator = Accumulator(self.buckets, step.accumulation_step) if step.accumulation_step > 1 else None
        self.ema = Ema(self.buckets, step.ema_decay, step.ema_warmup) if step.enable_ema else None
        self.clip_limit = step.clip_global_norm_value if step.use_global_norm else None
        self.world_size = device.world_size
        self.all_reduce_sum = ops.AllReduce(ops.ReduceOp.SUM) if device.world_size > 1 else None
        self.random_counter = _start_random_counter(network, device.rank)
        self.value_and_grad = ops.value_and_grad(self.scaled_loss, None, self.buckets.parameters, has_aux=True)
        self.set_train()

    def set_train(self, mode: bool = True) -> nn.Cell:
        """As for any Cell, but a teacher is never trained."""
        super().set_train(mode)
        if self.teacher is not None:
            self.teacher.set_train(False)
        return self

    def state(self) -> TrainState:
        """What a checkpoint saves.

        Not the learning rates, which the configuration determines, not the accumulators, which are empty between
        steps, and not the teacher.
        """
        others = (BUCKETS, TEACHER, "accumulated", self.optimizer.learning_rates.name)
        parameters = [parameter for parameter in self.get_parameters() if not parameter.name.startswith(others)]
        return TrainState(
            self.network,
            parameters,
            buffers=self.optimizer.buffers() + ([] if self.ema is None else self.ema.buffers()),
            trained=self.buckets.buffers(self.optimizer.weights),
            position=self.optimizer.position,
            random_counter=self.random_counter,
        )

    def construct(self, images: Tensor, targets: Tensor, drop_path: Optional[Tensor] = None, *boxes: Tensor) -> Tensor:
        """Train on one micro-batch.

        Args:
            images: (B, 3, H, W) uint8, see `TrainBatch`; float32, ready for the network, if there are no `boxes`.
            targets: (B, C) float32, rows of which sum to 1.
            drop_path: (2 * blocks, B) float32, see `FocalTransformer.construct`.
            boxes: the other entries of a `TrainBatch`: where images are erased and mixed.

        Returns:
            float32 vector of the values of `StepOutputs`.
        """
        if self.prepare_images is not None and boxes:
            images = self.prepare_images(images, *boxes)
        teacher_logits = None if self.teacher is None else self.teacher(images)
        images = self.overflow_check.start(images, teacher_logits)  # a teacher's overflows are not the network's
        (_, loss), gradients = self.value_and_grad(images, targets, drop_path, teacher_logits)
        overflow = self.overflow_check.read(gradients)
        gradients, unscaling = self.buckets(gradients), 1.0 / self.loss_scale.value
        if self.random_counter is not None:
            ops.assign_add(self.random_counter, Tensor(self.world_size, ms.int32))
        if self.accumulator is None:
            return self.update(gradients, unscaling, loss, overflow)
        outputs = ops.zeros((len(OUTPUTS),), ms.float32)
        if self.accumulator(gradients, unscaling, loss, overflow):
            outputs = self.update(*self.accumulator.sums_and_means())
            self.accumulator.reset()
        return outputs

    def scaled_loss(
        self, images: Tensor, targets: Tensor, drop_path: Optional[Tensor], teacher_logits: Optional[Tensor] = None
    ) -> tuple:
        loss = self.network_with_loss(images, targets, drop_path, teacher_logits)
        return loss * self.loss_scale.value, loss

    def update(self, gradients: tuple, factor: Tensor, loss: Tensor, overflow: Tensor) -> Tensor:
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
            self.ema(self.optimizer.weights, finite, updates)
        in_a_row = self.loss_scale(finite)
        nonfinite = 1.0 - finite.astype(ms.float32)
        updated = Tensor(1.0, ms.float32)
        return as_vector((updated, loss, norm, rate, scale, nonfinite, in_a_row.astype(ms.float32)))

    def sum_over_ranks(self, gradients: tuple) -> tuple:
        """Sum over ranks; the only place where gradients cross devices."""
        if self.all_reduce_sum is None:
            return gradients
        return tuple([self.all_reduce_sum(gradient) for gradient in gradients])

    def agree_finite(self, norm: Tensor, loss: Tensor, overflow: Tensor) -> tuple:
        """Whether all was finite on every rank (scalar bool, the same everywhere), and the mean loss over ranks."""
        bad = overflow + 1.0 - ops.isfinite(norm + loss).astype(ms.float32)
        if self.all_reduce_sum is not None:
            summed = self.all_reduce_sum(as_vector((bad, loss)))
            bad, loss = summed[0], summed[1] * (1.0 / self.world_size)
        return bad == 0, loss


def _start_random_counter(network: nn.Cell, rank: int) -> Optional[Parameter]:
    """The network's counter behind dropout, started at this rank's number; None if it has none."""
    counter = getattr(network, "random_counter", None)
    if counter is not None:
        counter.set_data(Tensor(rank, ms.int32))
    return counter


def trained_parameters(network: nn.Cell) -> ParameterTuple:
    """The parameters that training changes: those that require a gradient."""
    return ParameterTuple(network.trainable_params())
