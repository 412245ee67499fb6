"""The training loss. Shapes: B images, C classes."""

from __future__ import annotations

from typing import Optional

import mindspore as ms
from mindspore import Tensor, nn, ops


class SoftTargetCrossEntropy(nn.Cell):
    """Cross-entropy with target distributions, as label smoothing, Mixup and CutMix make them.

    The loss is the mean over the batch of -sum over classes of target * log_softmax(logits), in float32 whatever the
    network's precision (label smoothing: Szegedy et al. 2016, section 7).
    """

    def construct(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Scalar float32 loss of `logits` (B, C) against `targets` (B, C), rows of which sum to 1."""
        log_probability_BC = ops.log_softmax(logits.astype(ms.float32), -1)
        loss_B = -(targets.astype(ms.float32) * log_probability_BC).sum(-1)
        # Not mean(): an Ascend has no newer kernel for it, nor for its gradient.
        return loss_B.sum() / loss_B.shape[0]


class NetworkWithLoss(nn.Cell):
    """The network and its loss as one function of a batch."""

    def __init__(self, network: nn.Cell, loss: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.loss = loss

    def construct(self, images: Tensor, targets: Tensor, drop_path: Optional[Tensor] = None) -> Tensor:
        logits = self.network(images) if drop_path is None else self.network(images, drop_path)
        return self.loss(logits, targets)
