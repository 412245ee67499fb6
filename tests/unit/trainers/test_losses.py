"""The loss against NumPy."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor

from focal.trainers.losses import SoftTargetCrossEntropy


def reference(logits, targets):
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(1, keepdims=True)
    return -(targets * (shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))).sum(1).mean()


def test_the_loss_of_soft_targets_is_that_of_numpy():
    rng = np.random.default_rng(1)
    logits = (30 * rng.standard_normal((7, 10))).astype(np.float32)
    targets = rng.dirichlet(np.ones(10), 7).astype(np.float32)
    loss = SoftTargetCrossEntropy()(Tensor(logits), Tensor(targets))
    assert loss.shape == () and loss.dtype == ms.float32
    assert abs(float(loss) - reference(logits, targets)) < 1e-5 * abs(reference(logits, targets))


def test_float16_logits_are_summed_in_float32():
    rng = np.random.default_rng(2)
    logits = rng.standard_normal((64, 1000)).astype(np.float16)
    targets = np.full((64, 1000), 1e-3, np.float32)
    loss = SoftTargetCrossEntropy()(Tensor(logits), Tensor(targets))
    assert loss.dtype == ms.float32
    assert abs(float(loss) - reference(logits, targets)) < 1e-4
