"""The losses against NumPy, in float64."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from focal.data.transforms.mixup import mixed_targets
from focal.trainers.losses import (
    BinaryCrossEntropy,
    DistillationLoss,
    SoftTargetCrossEntropy,
    create_loss,
)


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


def draw(shape=(6, 10), scale=3.0, seed=3):
    """Logits, and targets as Mixup and label smoothing make them."""
    rng = np.random.default_rng(seed)
    lam = rng.random(shape[0]).astype(np.float32)
    targets = mixed_targets(rng.integers(0, shape[1], shape[0]), lam, shape[1], 0.1)
    return (scale * rng.standard_normal(shape)).astype(np.float32), targets


def log_softmax(logits):
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def bce_reference(logits, targets, threshold, sum_classes):
    """timm/loss/binary_cross_entropy.py, whose loss is torch's binary_cross_entropy_with_logits."""
    x, targets = logits.astype(np.float64), targets.astype(np.float64)
    if threshold is not None:
        targets = (targets > threshold).astype(np.float64)
    loss = np.maximum(x, 0) - x * targets + np.log1p(np.exp(-np.abs(x)))
    return loss.sum(-1).mean() if sum_classes else loss.mean()


@pytest.mark.parametrize(("threshold", "sum_classes"), [(None, False), (0.2, False), (None, True), (0.0, True)])
def test_binary_cross_entropy_of_dense_targets_is_timms(make_config, threshold, sum_classes):
    logits, targets = draw()
    loss = create_loss(make_config(loss="bce", bce_target_thresh=threshold, bce_sum=sum_classes).step)
    value = loss(Tensor(logits), Tensor(targets))
    assert value.shape == () and value.dtype == ms.float32
    assert float(value) == pytest.approx(bce_reference(logits, targets, threshold, sum_classes), rel=1e-6)
    assert float(value) != pytest.approx(bce_reference(logits, targets, 0.6, not sum_classes), rel=0.01)


def test_binary_cross_entropy_of_huge_float16_logits_is_finite_and_exact():
    logits, targets = draw(scale=1.0)
    logits = np.sign(logits).astype(np.float16) * np.float16(60000)
    value = float(BinaryCrossEntropy()(Tensor(logits), Tensor(targets)))
    assert value == pytest.approx(bce_reference(logits, targets, None, False), rel=1e-5) and np.isfinite(value)


@pytest.mark.parametrize(("alpha", "tau"), [(0.5, 3.0), (0.1, 1.0), (1.0, 0.5)])
def test_soft_distillation_is_that_of_deit(alpha, tau):
    logits, targets = draw()
    teacher = draw(seed=4)[0]
    log_p, log_q = log_softmax(teacher / tau), log_softmax(logits / tau)
    divergence = (np.exp(log_p) * (log_p - log_q)).sum() * tau**2 / logits.size
    loss = DistillationLoss(SoftTargetCrossEntropy(), "soft", alpha, tau)
    value = float(loss(Tensor(logits), Tensor(targets), Tensor(teacher)))
    assert value == pytest.approx((1 - alpha) * reference(logits, targets) + alpha * divergence, rel=1e-5)
    same = float(loss(Tensor(logits), Tensor(targets), Tensor(logits)))
    assert same == pytest.approx((1 - alpha) * reference(logits, targets), rel=1e-5, abs=1e-7)


def test_hard_distillation_is_the_cross_entropy_with_the_teachers_decisions(make_config):
    logits, targets = draw()
    teacher = draw(seed=4)[0]
    decided = teacher.argmax(1)
    expected = 0.7 * bce_reference(logits, targets, None, False) - 0.3 * log_softmax(logits)[range(6), decided].mean()
    settings = {"distillation": "hard", "distillation_alpha": 0.3, "teacher": "t.ckpt", "loss": "bce"}
    loss = create_loss(make_config(**settings).step)
    value = float(loss(Tensor(logits), Tensor(targets), Tensor(teacher.astype(np.float16))))
    assert value == pytest.approx(expected, rel=1e-5)


def test_the_networks_gradient_of_soft_distillation_is_that_of_numpy():
    """d/dlogits = alpha tau (softmax(logits / tau) - softmax(teacher / tau)) / (B C), from the formula above."""
    logits, targets = draw()
    teacher, tau = draw(seed=4)[0], 2.0
    loss = DistillationLoss(SoftTargetCrossEntropy(), "soft", 1.0, tau)
    gradient = ms.grad(loss)(Tensor(logits), Tensor(targets), Tensor(teacher)).asnumpy()
    difference = np.exp(log_softmax(logits / tau)) - np.exp(log_softmax(teacher / tau))
    np.testing.assert_allclose(gradient, tau * difference / logits.size, rtol=1e-4, atol=1e-8)
