"""The attention by products: its gradient against MindSpore's own, and the worked example of its module."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

from focal.models import focal_attention
from focal.models.cpu_forms import use_cpu_forms
from focal.models.focal_attention import WindowedProducts
from focal.models.focal_keys import StageMap, closest_keys, topk_closest_indices, window_keys
from focal.models.gathers import SplitHeads
from focal.models.layers import Dropout


def test_the_worked_example_numbers_the_tokens_and_keys_as_the_code_does():
    """The drawing at the head of focal_attention.py, line by line."""
    stage, text = StageMap.create(8, 8, 2), focal_attention.__doc__
    positions, pooled = stage.positions(), 64 + np.arange(16).reshape(4, 4)
    for row in range(8):
        drawn = " ".join(f"{token:2d}" for token in positions[row])
        if row < 4:
            drawn += "     " + " ".join(map(str, pooled[row]))
        assert f"        {drawn}" in text
    ring = window_keys(stage, levels=2, expand_size=1, shift=0, focal_window=3)
    closest, _ = closest_keys(stage, [topk_closest_indices(stage, level, 13) for level in range(2)])
    assert ring.keys.shape == (16, 25) and closest.keys.shape == (16, 26)
    assert list(ring.queries[5]) == list(closest.queries[5]) == [5, 21, 37, 53]
    for keys in (ring.keys[5, :4], ring.keys[5, 4:16], ring.keys[5, 16:], closest.keys[5, :13], closest.keys[5, 13:]):
        assert f" {' '.join(map(str, keys))}\n" in text


HEADS, DEPTH, TOKENS = 2, 3, 10
QUERIES = np.arange(8).reshape(2, 4)
KEYS = np.array([[0, 1, 2, 3, 8], [4, 5, 6, 7, 9]])


def windowed_products(scale, attn_drop):
    split_heads = SplitHeads(QUERIES, KEYS, np.zeros(KEYS.shape, bool), [8, 2], HEADS)
    return WindowedProducts(scale, split_heads, attn_drop)


class Differentiated(nn.Cell):
    """The same forward pass, whose gradient MindSpore derives."""

    def __init__(self, products):
        super().__init__()
        self.products = products

    def construct(self, qkv, bias):
        return self.products.construct(qkv, bias)


@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.parametrize("training", [True, False])
def test_the_written_gradient_of_the_attention_is_that_of_its_forward_pass(rate, training):
    counter = Parameter(Tensor(3, ms.int32), name="counter", requires_grad=False)
    products = windowed_products(DEPTH**-0.5, Dropout(rate, 17, counter)).set_train(training)
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


@pytest.mark.parametrize("for_cpu", [True, False])
def test_the_softmax_of_float16_products_is_float16_but_on_a_cpu(for_cpu):
    """The weights' type; and output and gradients of both forms are those of float32, but for rounding."""
    rng = np.random.default_rng(2)
    qkv = (2 * rng.standard_normal((3, TOKENS, 3 * HEADS * DEPTH))).astype(np.float16)
    bias = rng.standard_normal((1, HEADS * 2, 4, 5)).astype(np.float32)
    sensitivity = Tensor(rng.standard_normal((3, HEADS * 2, 4, DEPTH)).astype(np.float32))
    products = windowed_products(DEPTH**-0.5, nn.Identity()).set_train(True)
    use_cpu_forms(products, for_cpu)

    def results(qkv):
        def loss(qkv, bias):
            attended, weights, *_ = products(qkv, bias)
            return (attended.astype(ms.float32) * sensitivity).sum(), attended, weights

        (_, attended, weights), gradients = ops.value_and_grad(loss, (0, 1), has_aux=True)(qkv, Tensor(bias))
        return (attended, *gradients), weights.dtype

    half, dtype = results(Tensor(qkv))
    single, exact = results(Tensor(qkv.astype(np.float32)))
    assert dtype == (ms.float32 if for_cpu else ms.float16) and exact == ms.float32
    assert half[2].dtype == ms.float32  # the bias's gradient is summed over the batch in float32
    for ours, reference in zip(half, single):
        reference = reference.asnumpy()
        assert np.linalg.norm(ours.asnumpy() - reference) < 3e-3 * np.linalg.norm(reference)


def test_the_dropout_of_attention_weights_takes_part():
    counter = Parameter(Tensor(3, ms.int32), name="counter", requires_grad=False)
    outputs = []
    for rate in (0.0, 0.4):
        products = windowed_products(1.0, Dropout(rate, 17, counter)).set_train(True)
        ones = Tensor(np.ones((1, TOKENS, 3 * HEADS * DEPTH), np.float32))
        outputs.append(products(ones, Tensor(np.zeros((1, HEADS * 2, 4, 5), np.float32)))[0].asnumpy())
    assert np.allclose(outputs[0], 1) and outputs[1].std() > 0.1
