"""Optimizers that can skip a step exactly, and the weight decay and learning rate of each parameter.

MindSpore's own optimizers advance their step count and moments whenever they are called, and its `AdamWeightDecay` is
Adam without bias correction. To skip non-finite steps exactly, without control flow on the device, the optimizer has
to know. So each optimizer here is called as `optimizer(gradients, finite)`: if `finite` is False (and the gradients are
zeros), its parameters, moments and step count stay as they are, to the bit. It returns the number of steps done
(int32), this one included if it was finite.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from focal.checkpoint.train_state import FlatBuffer
from focal.config.schema import ModelConfig, OptimConfig
from focal.trainers.buckets import Buckets


@dataclasses.dataclass(frozen=True)
class ParameterSetting:
    """Weight decay and learning-rate factor of one parameter."""

    name: str
    weight_decay: float
    lr_factor: float


def parameter_settings(
    parameters: Sequence[Parameter], optim: OptimConfig, depths: Sequence[int]
) -> list[ParameterSetting]:
    """Weight decay and learning-rate factor of each parameter.

    Tensors of fewer than two dimensions, names ending in `.bias` and absolute_pos_embed do not decay. This is the
    authors' rule, except that their version 1 also exempts relative_position_bias_table*, which decays here. The rate
    factor is layer_decay ** (layers + 1 - layer), see `layer_of`.
    """
    settings = []
    top = sum(depths) + 1
    for parameter in parameters:
        name = parameter.name
        decays = len(parameter.shape) >= 2 and not name.endswith(".bias") and name != "absolute_pos_embed"
        factor = optim.layer_decay ** (top - layer_of(name, depths))
        settings.append(ParameterSetting(name, optim.weight_decay if decays else 0.0, factor))
    return settings


def layer_of(name: str, depths: Sequence[int]) -> int:
    """Layer of a parameter for layer-wise learning-rate decay, counted as BEiT and timm do for transformers.

    Layer 0 is the stem and absolute_pos_embed; block b of stage s is layer 1 + b + the blocks of earlier stages. The
    downsampling at the end of a stage belongs to its last block. The final norm and the head are the last layer.
    """
    block = re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", name)
    if block:
        stage, index = int(block.group(1)), int(block.group(2))
        return 1 + sum(depths[:stage]) + index
    downsampling = re.match(r"layers\.(\d+)\.", name)
    if downsampling:
        return sum(depths[: int(downsampling.group(1)) + 1])
    if name.startswith(("patch_embed.", "absolute_pos_embed")):
        return 0
    return sum(depths) + 1


class Optimizer(nn.Cell):
    """Base class: the learning rate of the current step, the count of steps, and the weights in buckets.

    Args:
        parameters: the parameters to train.
        settings: one per parameter, in order.
        learning_rates: float (U,), the rate of each step of the training; the last one holds beyond.

    Attributes:
        weights: the trained weights, a vector per bucket. The network's parameters are copies of them.
        moments: of each kind of moment, a vector per bucket, by name.
    """

    def __init__(
        self, parameters: ParameterTuple, settings: Sequence[ParameterSetting], learning_rates: np.ndarray
    ) -> None:
        super().__init__(auto_prefix=False)
        self.parameters_to_train = parameters
        self.buckets = Buckets(parameters, [(setting.weight_decay, setting.lr_factor) for setting in settings])
        self.weight_decays = tuple(weight_decay for weight_decay, _ in self.buckets.kinds)
        self.lr_factors = tuple(lr_factor for _, lr_factor in self.buckets.kinds)
        self.weights = self.buckets.weights("weights")
        self.moments: dict[str, ParameterTuple] = {}
        self.last_rate = len(learning_rates) - 1
        self.for_each = ops.HyperMap()
        # A Parameter rather than a constant, so that the graph stays small and does not depend on the schedule.
        self.learning_rates = Parameter(
            Tensor(np.asarray(learning_rates, np.float32)), name="schedule.learning_rates", requires_grad=False
        )
        # Skipped steps are not counted here but do advance `position`: their data has been consumed.
        self.step = Parameter(Tensor(0, ms.int32), name="optimizer.step", requires_grad=False)
        self.position = Parameter(Tensor(0, ms.int32), name="schedule.position", requires_grad=False)

    def new_moments(self, name: str) -> ParameterTuple:
        """A kind of moment, called `name` here and `name.NAME` in checkpoints: zeros."""
        self.moments[name] = self.buckets.zeros(name)
        return self.moments[name]

    def buffers(self) -> list[FlatBuffer]:
        """The moments under their names in a checkpoint."""
        return [
            buffer for name, vectors in self.moments.items() for buffer in self.buckets.buffers(vectors, f"{name}.")
        ]

    def current_rate(self) -> Tensor:
        """Scalar float32 learning rate of the current step."""
        index = ops.minimum(self.position, Tensor(self.last_rate, ms.int32))
        return ops.gather(self.learning_rates, index, 0)

    def update_all(self, update: Callable, moments: tuple, gradients: tuple, finite: Tensor) -> Tensor:
        """Call `update` for each bucket, set the network's parameters, count the step; returns what `advance` does.

        Args:
            update: called with rate factor, weight decay, weights, their moments and their gradient, all vectors.
            moments: one tuple of vectors per kind of moment.
            gradients, finite: see the module.
        """
        updated = self.for_each(update, self.lr_factors, self.weight_decays, self.weights, *moments, gradients)
        copied = self.buckets.copy_to_parameters(ops.depend(self.weights, updated))
        return ops.depend(self.advance(finite), copied)

    def advance(self, finite: Tensor) -> Tensor:
        """Count the step; returns the steps done (int32), this one included if it was finite."""
        ops.assign_add(self.position, Tensor(1, ms.int32))
        ops.assign_add(self.step, finite.astype(ms.int32))
        return self.step + 0


class AdamW(Optimizer):
    """AdamW (Loshchilov and Hutter 2019) with bias correction, as in PyTorch, or on request without.

    One fused kernel per bucket computes m, v and p -= lr' * (m / (sqrt(v) + eps') + wd' * p). With
    c1 = 1 - beta1^t and c2 = sqrt(1 - beta2^t), setting lr' = lr * c2 / c1, eps' = eps * c2 and wd' = wd * c1 / c2
    makes that lr * (m / c1 / (sqrt(v) / c2 + eps) + wd * p). A skipped step has betas of 1 and a rate of 0.

    Args:
        bias_correction: False gives the report's `adam_weight_decay` (lr' = lr, eps' = eps, wd' = wd).
    """

    def __init__(
        self,
        parameters: ParameterTuple,
        settings: Sequence[ParameterSetting],
        learning_rates: np.ndarray,
        betas: Sequence[float],
        eps: float,
        bias_correction: bool = True,
    ) -> None:
        super().__init__(parameters, settings, learning_rates)
        self.betas = (float(betas[0]), float(betas[1]))
        # The kernel uses betas rounded to float32, so the bias correction has to be theirs.
        self.log_betas = tuple(math.log(float(np.float32(beta))) if beta else -math.inf for beta in betas)
        self.eps = eps
        self.bias_correction = bias_correction
        self.moments1, self.moments2 = self.new_moments("moment1"), self.new_moments("moment2")

    def construct(self, gradients: tuple, finite: Tensor) -> Tensor:
        active = finite.astype(ms.float32)
        rate = self.current_rate() * active
        correction1, correction2 = self.corrections()
        beta1 = ops.select(finite, Tensor(self.betas[0], ms.float32), Tensor(1.0, ms.float32))
        beta2 = ops.select(finite, Tensor(self.betas[1], ms.float32), Tensor(1.0, ms.float32))
        kernel_rate, kernel_eps = rate * (correction2 / correction1), self.eps * correction2
        update = ops.partial(_fused_adamw, kernel_rate, beta1, beta2, kernel_eps, correction1 / correction2)
        return self.update_all(update, (self.moments1, self.moments2), gradients, finite)

    def corrections(self) -> tuple:
        """c1 and c2 of the current step (scalars), by expm1: 1 - beta^t loses digits in float32 while t is small."""
        if not self.bias_correction:
            return Tensor(1.0, ms.float32), Tensor(1.0, ms.float32)
        t = self.step.astype(ms.float32) + 1.0
        return -ops.expm1(self.log_betas[0] * t), ops.sqrt(-ops.expm1(self.log_betas[1] * t))


_ADAM_WEIGHT_DECAY = ops.AdamWeightDecay()


def _fused_adamw(
    rate: Tensor,
    beta1: Tensor,
    beta2: Tensor,
    eps: Tensor,
    decay_scale: Tensor,
    lr_factor: float,
    weight_decay: float,
    parameter: Parameter,
    moment1: Parameter,
    moment2: Parameter,
    gradient: Tensor,
) -> tuple:
    """The kernel that `AdamW` describes: `rate` and `eps` are lr' and eps'; wd' = weight_decay * decay_scale."""
    decay = weight_decay * decay_scale
    # What the kernel returns must not be read: on CPU that memory is never written.
    return _ADAM_WEIGHT_DECAY(parameter, moment1, moment2, rate * lr_factor, beta1, beta2, eps, decay, gradient)


class Lamb(Optimizer):
    """LAMB (You et al. 2020, algorithm 2): AdamW's direction, rescaled per tensor by the norm of the weights.

    Tensors without weight decay (biases, norms) keep the plain learning rate, as in timm and the paper's code.
    """

    def __init__(
        self,
        parameters: ParameterTuple,
        settings: Sequence[ParameterSetting],
        learning_rates: np.ndarray,
        betas: Sequence[float],
        eps: float,
    ) -> None:
        super().__init__(parameters, settings, learning_rates)
        self.beta1, self.beta2 = float(betas[0]), float(betas[1])
        self.eps = eps
        self.moments1, self.moments2 = self.new_moments("moment1"), self.new_moments("moment2")

    def construct(self, gradients: tuple, finite: Tensor) -> Tensor:
        active = finite.astype(ms.float32)
        rate = self.current_rate() * active
        t = self.step.astype(ms.float32) + 1.0
        correction1 = 1.0 - ops.pow(Tensor(self.beta1, ms.float32), t)
        correction2 = 1.0 - ops.pow(Tensor(self.beta2, ms.float32), t)
        rise1, rise2 = (1.0 - self.beta1) * active, (1.0 - self.beta2) * active
        direct = ops.partial(_lamb_direction, rise1, rise2, correction1, correction2, self.eps)
        directions = self.for_each(direct, self.weight_decays, self.weights, self.moments1, self.moments2, gradients)
        return self.update_all(ops.partial(_lamb, rate), (), self.rescaled(directions), finite)

    def rescaled(self, directions: tuple) -> tuple:
        """Directions times the trust ratio of each tensor, in the buckets with weight decay."""
        vectors: tuple[Tensor, ...] = ()
        for bucket, sizes in enumerate(self.buckets.sizes):
            vector = directions[bucket]
            if self.weight_decays[bucket] > 0:
                split_rows = self.buckets.split_rows
                weights, rows = split_rows(self.weights[bucket], sizes), split_rows(vector, sizes)
                vector = ops.concat(self.for_each(_times_trust_ratio, weights, rows), 0)
            vectors += (vector,)
        return vectors


def _lamb_direction(
    rise1: Tensor,
    rise2: Tensor,
    correction1: Tensor,
    correction2: Tensor,
    eps: float,
    weight_decay: float,
    weights: Parameter,
    moment1: Parameter,
    moment2: Parameter,
    gradient: Tensor,
) -> Tensor:
    """Moves the moments and returns AdamW's direction; `rise1`, `rise2` are 1 - beta1 and 1 - beta2, or 0 to skip."""
    ops.assign_add(moment1, (gradient - moment1) * rise1)
    ops.assign_add(moment2, (ops.square(gradient) - moment2) * rise2)
    direction = moment1 / correction1 / (ops.sqrt(moment2 / correction2) + eps)
    return direction + weight_decay * weights


def _times_trust_ratio(weights: Tensor, direction: Tensor) -> Tensor:
    """`direction` times the norm of the weights over its own norm; unchanged if either is zero."""
    weight_norm = ops.sqrt(ops.square(weights).sum())
    direction_norm = ops.sqrt(ops.square(direction).sum())
    one = ops.ones_like(weight_norm)
    ratio = weight_norm / ops.select(direction_norm > 0, direction_norm, one)
    return direction * ops.select(ops.logical_and(weight_norm > 0, direction_norm > 0), ratio, one)


def _lamb(rate: Tensor, lr_factor: float, weight_decay: float, weights: Parameter, direction: Tensor) -> Tensor:
    """One bucket's update; `direction` has the weight decay in it."""
    return ops.assign_sub(weights, direction * (rate * lr_factor))


class Momentum(Optimizer):
    """SGD with momentum and decoupled weight decay: v = momentum * v + g, p -= lr * (v + wd * p)."""

    def __init__(
        self,
        parameters: ParameterTuple,
        settings: Sequence[ParameterSetting],
        learning_rates: np.ndarray,
        momentum: float,
    ) -> None:
        super().__init__(parameters, settings, learning_rates)
        self.momentum = momentum
        self.moments1 = self.new_moments("moment1")

    def construct(self, gradients: tuple, finite: Tensor) -> Tensor:
        active = finite.astype(ms.float32)
        rate = self.current_rate() * active
        decay = (1.0 - self.momentum) * active
        return self.update_all(ops.partial(_momentum, rate, decay), (self.moments1,), gradients, finite)


def _momentum(
    rate: Tensor,
    decay: Tensor,
    lr_factor: float,
    weight_decay: float,
    parameter: Parameter,
    moment1: Parameter,
    gradient: Tensor,
) -> Tensor:
    """One bucket's update; `decay` is 1 - momentum, or 0 to skip."""
    ops.assign_add(moment1, gradient - moment1 * decay)
    return ops.assign_sub(parameter, (moment1 + weight_decay * parameter) * (rate * lr_factor))


def create_optimizer(
    parameters: ParameterTuple, optim: OptimConfig, model: ModelConfig, learning_rates: np.ndarray
) -> Optimizer:
    """The optimizer that `optim.optimizer` names.

    Args:
        parameters: the parameters to train, without frozen ones.
        optim: optimizer settings.
        model: says how deep each parameter is, for `layer_decay`.
        learning_rates: one per step, see `focal.trainers.lr_schedule.learning_rates`.
    """
    settings = parameter_settings(parameters, optim, model.depths)
    if optim.optimizer == "lamb":
        return Lamb(parameters, settings, learning_rates, optim.beta, optim.eps)
    if optim.optimizer == "momentum":
        return Momentum(parameters, settings, learning_rates, optim.momentum)
    corrected = optim.optimizer == "adamw"
    return AdamW(parameters, settings, learning_rates, optim.beta, optim.eps, bias_correction=corrected)
