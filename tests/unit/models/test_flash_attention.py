"""Attention by the fused operator, a stand-in of it here, against the attention by products."""

import inspect

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from mindspore.ops.auto_generate import FlashAttentionScore, FlashAttentionScoreGrad

from focal.models import flash_attention
from focal.models.attention_choice import MergedProducts
from focal.models.flash_attention import FlashAttention
from focal.models.focal_attention import AttentionTables, WindowedProducts
from focal.models.focal_keys import MASK_VALUE, StageMap, closest_keys, topk_closest_indices, window_keys
from tests.unit.models.flash_stand_in import Score, ScoreGradient, stand_in

HEADS, DEPTH, BATCH = 2, 4, 3
STAGE = StageMap.create(8, 8, 2)
TABLES = {
    "version 1": lambda: window_keys(STAGE, levels=2, expand_size=1, shift=1, focal_window=3),  # hides keys
    "version 2": lambda: closest_keys(STAGE, [topk_closest_indices(STAGE, level, 13) for level in range(2)])[0],
    "version 2, one group": lambda: closest_keys(STAGE, [topk_closest_indices(STAGE, level, 64) for level in (0, 1)])[
        0
    ],
}


@pytest.fixture
def operators(monkeypatch):
    """Replaces the operators by stand-ins, with the settings of `stand_in`."""

    def replace(**settings):
        for name, maker in vars(stand_in(**settings)).items():
            monkeypatch.setattr(flash_attention, name, maker)

    return replace


def products_of(tables):
    return WindowedProducts(DEPTH**-0.5, tables.split_heads, nn.Identity())


def merged_products_of(tables):
    return MergedProducts(products_of(tables), tables.merge_heads)


def inputs_of(tables, dtype=ms.float32):
    rng = np.random.default_rng(1)
    groups, queries, keys = tables.shape
    bias = rng.standard_normal((1, HEADS, groups, queries, keys))
    bias = np.where(tables.is_hidden, MASK_VALUE, bias).astype(np.float32).reshape(1, HEADS * groups, queries, keys)
    qkv = rng.standard_normal((BATCH, sum(tables.tokens), 3 * HEADS * DEPTH)).astype(np.float32)
    return Tensor(qkv, dtype), Tensor(bias)


def results(cell, qkv, bias):
    """The output (B, N, C) of a Cell, and the gradients of qkv and bias for a random gradient of it."""
    weight = Tensor(np.random.default_rng(2).standard_normal((BATCH, 64, HEADS * DEPTH)).astype(np.float32))

    def loss(qkv, bias):
        output = cell(qkv, bias)[0]
        return (output * weight).sum(), output

    cell.set_train()
    (_, output), gradients = ops.value_and_grad(loss, (0, 1), has_aux=True)(qkv, bias)
    return [tensor.asnumpy() for tensor in (output, *gradients)]


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("operator_gives_bias_gradient", [True, False])
def test_flash_computes_what_the_products_compute(name, operator_gives_bias_gradient, operators, graph_mode_on_cpu):
    """Output and all gradients; folding groups into heads and back loses nothing."""
    operators()
    table = TABLES[name]()
    tables = AttentionTables(table, [64, 16], HEADS)
    assert tables.shape[0] == (1 if name.endswith("one group") else 16)
    flash = FlashAttention(products_of(tables), tables, operator_gives_bias_gradient)
    actual = results(flash, *inputs_of(tables))
    expected = results(merged_products_of(tables), *inputs_of(tables))
    for one, other in zip(actual, expected):
        assert np.abs(other).max() > 0.1
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize("operator_gives_bias_gradient", [True, False])
def test_a_gradient_of_the_bias_that_the_operator_does_not_compute_is_left_to_the_products(
    operator_gives_bias_gradient, operators, pynative_mode
):
    operators(backward={"bias_gradient": 0.0})
    tables = AttentionTables(TABLES["version 2"](), [64, 16], HEADS)
    flash = FlashAttention(products_of(tables), tables, operator_gives_bias_gradient)
    actual = results(flash, *inputs_of(tables))[2]
    expected = results(merged_products_of(tables), *inputs_of(tables))[2]
    if operator_gives_bias_gradient:
        assert (actual == 0).all() and (expected != 0).any()
    else:
        np.testing.assert_allclose(actual, expected, atol=2e-5)


def test_it_does_not_matter_whether_the_operator_scales_before_or_after_the_bias(operators, pynative_mode):
    """Documents disagree; queries are scaled before the operator sees them."""
    tables, outcomes = AttentionTables(TABLES["version 1"](), [64, 16], HEADS), []
    for scale_before_bias in (True, False):
        meaning = {"scale_before_bias": scale_before_bias}
        operators(forward=meaning, backward=meaning)
        flash = FlashAttention(products_of(tables), tables, True)
        outcomes.append(results(flash, *inputs_of(tables)))
    for one, other in zip(*outcomes):
        np.testing.assert_array_equal(one, other)
    scores = [Score(2, 0.5, scale_before_bias) for scale_before_bias in (True, False)]
    x, shift = (
        Tensor(np.ones((1, 3, 8), np.float32)),
        Tensor(np.eye(3, dtype=np.float32)[None, None] * np.ones((1, 2, 1, 1), np.float32)),
    )
    differing = [score.logits(x, x, shift).asnumpy() for score in scores]
    assert np.abs(differing[0] - differing[1]).max() > 0.1  # with a scale of its own the operator would tell them apart


def test_a_folded_bias_is_in_the_order_and_type_of_the_operator(operators, pynative_mode):
    operators()
    tables = AttentionTables(TABLES["version 1"](), [64, 16], HEADS)
    flash = FlashAttention(products_of(tables), tables, True)
    qkv, bias = inputs_of(tables, ms.float16)
    expected = flash(qkv, bias)[0]
    flash.fold_bias(bias.asnumpy(), ms.float16)
    assert flash.shift(bias, ms.float16).dtype == ms.float16
    np.testing.assert_array_equal(flash(qkv, bias * 0)[0].asnumpy(), expected.asnumpy())


def test_the_mask_hides_keys_in_float16(operators, pynative_mode):
    """-100 is exact in float16, and nothing is left of exp(-100)."""
    operators()
    tables = AttentionTables(TABLES["version 1"](), [64, 16], HEADS)
    flash = FlashAttention(products_of(tables), tables, True)
    qkv, bias = inputs_of(tables, ms.float16)
    lower = Tensor(np.where(bias.asnumpy() == MASK_VALUE, np.float32(-60000), bias.asnumpy()))
    shown = Tensor(np.maximum(bias.asnumpy(), -2))
    outputs = [flash(qkv, each)[0].asnumpy() for each in (bias, lower, shown)]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert np.abs(outputs[0] - outputs[2]).max() > 0.1


@pytest.mark.parametrize(
    ("operator", "replacement"), [(FlashAttentionScore, Score), (FlashAttentionScoreGrad, ScoreGradient)]
)
def test_the_stand_in_takes_as_many_inputs_as_the_operator(operator, replacement):
    inputs = inspect.signature(replacement.construct).parameters
    assert len(inputs) - 1 == len(operator.__mindspore_signature__)


def test_the_operators_are_made_for_folded_heads_side_by_side_and_scaled_queries():
    for operator in flash_attention.flash_operators(192):
        attributes = operator.get_attr_dict() or {}
        settings = {name: getattr(operator, name, attributes.get(name)) for name in ("head_num", "scale_value")}
        assert settings == {"head_num": 192, "scale_value": 1.0}
