"""The training losses, in float32 whatever the network's precision. Shapes: B images, C classes.

Operators are those with newer kernels on an Ascend: not mean(), which has none, nor has its gradient.
"""

from __future__ import annotations

from typing import Optional

import mindspore as ms
from mindspore import Tensor, nn, ops

from focal.config.schema import StepConfig


class SoftTargetCrossEntropy(nn.Cell):
    """Cross-entropy with target distributions, as label smoothing, Mixup and CutMix make them.

    The loss is the mean over the batch of -sum over classes of target * log_softmax(logits) (label smoothing: Szegedy
    et al. 2016, section 7).
    """

    def construct(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Scalar float32 loss of `logits` (B, C) against `targets` (B, C), rows of which sum to 1."""
        log_probability_BC = ops.log_softmax(logits.astype(ms.float32), -1)
        loss_B = -(targets.astype(ms.float32) * log_probability_BC).sum(-1)
        return loss_B.sum() / loss_B.shape[0]


class BinaryCrossEntropy(nn.Cell):
    """Binary cross-entropy of every class for itself, as timm's BinaryCrossEntropy (Wightman et al. 2021, section 4).

    The loss is the mean over the batch and the classes of -t log sigmoid(x) - (1 - t) log(1 - sigmoid(x)), computed
    as max(x, 0) - x t + log(1 + exp(-|x|)).

    Args:
        target_threshold: targets above it become 1, others 0; None: they stay as Mixup and smoothing make them.
        sum_classes: the sum over the classes in the place of their mean.
    """

    def __init__(self, target_threshold: Optional[float] = None, sum_classes: bool = False) -> None:
        super().__init__()
        self.target_threshold, self.sum_classes = target_threshold, sum_classes
        self.mean_of_all = ops.BCEWithLogitsLoss("mean")

    def construct(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Scalar float32 loss of `logits` (B, C) against `targets` (B, C) between 0 and 1."""
        logits, targets = logits.astype(ms.float32), targets.astype(ms.float32)
        if self.target_threshold is not None:
            targets = (targets > self.target_threshold).astype(ms.float32)
        weights = ops.ones_like(logits)
        loss = self.mean_of_all(logits, targets, weights, weights)
        return loss * logits.shape[1] if self.sum_classes else loss


class DistillationLoss(nn.Cell):
    """A loss, and beside it how far the logits are from a teacher's, as DeiT's DistillationLoss (Touvron et al. 2021).

    The loss is (1 - alpha) * base + alpha * distillation. The distillation is, if soft, tau^2 / (B C) times the sum of
    the Kullback-Leibler divergences of softmax(logits / tau) from softmax(teacher / tau) (Hinton et al. 2015; the
    divisor is that of DeiT's code); if hard, the cross-entropy with the teacher's likeliest class.

    Args:
        base: the loss against the targets.
        kind: soft or hard.
        alpha: weight of the distillation.
        tau: temperature, if soft.
    """

    def __init__(self, base: nn.Cell, kind: str, alpha: float, tau: float) -> None:
        super().__init__()
        self.base, self.soft, self.alpha, self.tau = base, kind == "soft", alpha, tau
        self.cross_entropy = SoftTargetCrossEntropy()

    def construct(self, logits: Tensor, targets: Tensor, teacher_logits: Tensor) -> Tensor:
        """Scalar float32 loss of `logits` (B, C) against `targets` and `teacher_logits`, both (B, C)."""
        base = self.base(logits, targets)
        logits, teacher_logits = logits.astype(ms.float32), teacher_logits.astype(ms.float32)
        distillation = self.divergence(logits, teacher_logits) if self.soft else self.decision(logits, teacher_logits)
        return base * (1.0 - self.alpha) + distillation * self.alpha

    def divergence(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        log_student_BC = ops.log_softmax(logits / self.tau, -1)
        log_teacher_BC = ops.log_softmax(teacher_logits / self.tau, -1)
        divergence = (ops.exp(log_teacher_BC) * (log_teacher_BC - log_student_BC)).sum()
        return divergence * (self.tau**2 / (logits.shape[0] * logits.shape[1]))

    def decision(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        classes_1C = ops.arange(0, logits.shape[1], 1).astype(ms.int32).expand_dims(0)
        _, decided_B1 = ops.max(teacher_logits, -1, True)  # argmax has no newer kernel
        return self.cross_entropy(logits, (classes_1C == decided_B1.astype(ms.int32)).astype(ms.float32))


def create_loss(step: StepConfig) -> nn.Cell:
    """The loss that `loss` and `distillation` ask for; with distillation it takes the teacher's logits too."""
    loss: nn.Cell = SoftTargetCrossEntropy()
    if step.loss == "bce":
        loss = BinaryCrossEntropy(step.bce_target_thresh, step.bce_sum)
    if step.distillation == "none":
        return loss
    return DistillationLoss(loss, step.distillation, step.distillation_alpha, step.distillation_tau)


class NetworkWithLoss(nn.Cell):
    """The network and its loss as one function of a batch."""

    def __init__(self, network: nn.Cell, loss: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.loss = loss

    def construct(
        self,
        images: Tensor,
        targets: Tensor,
        drop_path: Optional[Tensor] = None,
        teacher_logits: Optional[Tensor] = None,
    ) -> Tensor:
        logits = self.network(images) if drop_path is None else self.network(images, drop_path)
        return self.loss(logits, targets) if teacher_logits is None else self.loss(logits, targets, teacher_logits)
