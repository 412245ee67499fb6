"""Layers that take other operations on a CPU than elsewhere: both forms against NumPy, values and gradients."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from focal.models.layers import AddToSamples, ScaleSamples, SoftmaxGradient

forms = pytest.mark.parametrize("on_cpu", [True, False], ids=["cpu", "elsewhere"])
SHAPE = (3, 4, 5)


def build(kind, on_cpu):
    cell = kind()
    for name in ("spread_first", "repeat_first"):
        if hasattr(cell, name):
            setattr(cell, name, on_cpu)
    return cell


def random(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


@forms
def test_softmax_gradient(on_cpu):
    logits, dout = random(*SHAPE), random(*SHAPE, 1)[..., 0]
    out = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = (dout - (dout * out).sum(-1, keepdims=True)) * out
    gradient = build(SoftmaxGradient, on_cpu)(Tensor(dout), Tensor(out))
    np.testing.assert_allclose(gradient.asnumpy(), expected, rtol=1e-5, atol=1e-6)


@forms
@pytest.mark.parametrize("training", [True, False])
def test_addition_to_samples(on_cpu, training):
    cell = build(AddToSamples, on_cpu).set_train(training)
    x, addend = random(*SHAPE), random(1, *SHAPE[1:])
    np.testing.assert_array_equal(cell(Tensor(x), Tensor(addend)).asnumpy(), x + addend)

    class Summed(nn.Cell):
        def construct(self, gradient):
            return cell.sum_samples(gradient)

    summed = Summed()(Tensor(x)).asnumpy()
    assert summed.shape == (1, *SHAPE[1:])
    np.testing.assert_allclose(summed, x.sum(0, keepdims=True), rtol=1e-5, atol=1e-6)


@forms
def test_scaled_samples(on_cpu):
    cell = build(ScaleSamples, on_cpu)
    x, factors = random(*SHAPE), np.array([[2.0], [0.0], [-3.0]], np.float32)
    expected = x * factors[:, :, None]
    np.testing.assert_array_equal(cell(Tensor(x), Tensor(factors)).asnumpy(), expected)

    def loss(x, factors):
        return (cell(x, factors) * Tensor(x_gradient)).sum()

    x_gradient = random(5, 4, 3).T.copy()
    dx, dfactors = ms.grad(loss, (0, 1))(Tensor(x), Tensor(factors))
    np.testing.assert_allclose(dx.asnumpy(), x_gradient * factors[:, :, None], rtol=1e-6)
    assert not dfactors.asnumpy().any()  # they come from random numbers: nothing flows through them
