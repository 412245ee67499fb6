"""The attention's own backward pass against the differentiation of its forward pass."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

from focal.models.focal_attention import WindowedProducts
from focal.models.gather import SplitHeads
from focal.models.layers import Dropout

HEADS, DEPTH, TOKENS = 2, 3, 10
QUERIES = np.arange(8).reshape(2, 4)
KEYS = np.array([[0, 1, 2, 3, 8], [4, 5, 6, 7, 9]])


class Differentiated(nn.Cell):
    """The same forward pass without the backward pass of its own."""

    def __init__(self, products):
        super().__init__()
        self.products = products

    def construct(self, qkv, bias):
        return self.products.construct(qkv, bias)


@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.parametrize("training", [True, False])
def test_gradient_is_that_of_the_forward_pass(rate, training):
    counter = Parameter(Tensor(3, ms.int32), name="counter", requires_grad=False)
    products = WindowedProducts(DEPTH**-0.5, Dropout(rate, 17, counter))
    products.split_heads = SplitHeads(QUERIES, KEYS, np.zeros(KEYS.shape, bool), [8, 2], HEADS)
    products.set_train(training)
    rng = np.random.default_rng(1)
    qkv = rng.standard_normal((2, TOKENS, 3 * HEADS * DEPTH)).astype(np.float32)
    bias = rng.standard_normal((1, HEADS * 2, 4, 5)).astype(np.float32)
    sensitivity = Tensor(rng.standard_normal((2, HEADS * 2, 4, DEPTH)).astype(np.float32))

    def gradients(cell):
        def loss(qkv, bias):
            return (cell(qkv, bias)[0] * sensitivity).sum()

        return ops.value_and_grad(loss, (0, 1))(Tensor(qkv), Tensor(bias))

    (loss, ours), (expected_loss, expected) = gradients(products), gradients(Differentiated(products))
    assert float(loss) == float(expected_loss)
    for gradient, reference in zip(ours, expected):
        reference = reference.asnumpy()
        assert np.abs(reference).max() > 0.1
        np.testing.assert_allclose(gradient.asnumpy(), reference, rtol=1e-4, atol=1e-5)


def test_dropout_takes_part():
    counter = Parameter(Tensor(3, ms.int32), name="counter", requires_grad=False)
    outputs = []
    for rate in (0.0, 0.4):
        products = WindowedProducts(1.0, Dropout(rate, 17, counter))
        products.split_heads = SplitHeads(QUERIES, KEYS, np.zeros(KEYS.shape, bool), [8, 2], HEADS)
        products.set_train(True)
        ones = Tensor(np.ones((1, TOKENS, 3 * HEADS * DEPTH), np.float32))
        outputs.append(products(ones, Tensor(np.zeros((1, HEADS * 2, 4, 5), np.float32)))[0].asnumpy())
    assert np.allclose(outputs[0], 1) and outputs[1].std() > 0.1
