"""Both forms of the Cells that take newer primitives on an Ascend: equal results, one switch, the right device.

A CPU has kernels for some of these primitives only. The others are replaced by NumPy here, with the meaning and the
arguments that MindSpore documents for them: what is tested is what the Cell asks them for. That an Ascend has kernels
for them is shown by tests/ascend.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn
from mindspore._c_expression import ms_ctx_param
from scipy.special import ndtr

from focal.models import ascend_forms
from focal.models.ascend_forms import (
    AscendForm,
    Dense,
    LayerNorm,
    TakeRows,
    TokenMean,
    has_newer_kernels,
    use_ascend_forms,
)
from focal.models.inference import prepare_for_export
from focal.models.layers import GELU, Mlp

pytestmark = pytest.mark.usefixtures("pynative_mode")


def random(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def index_select(x, axis, index):
    return Tensor(np.take(x.asnumpy(), index.asnumpy(), axis))


def layer_norm_ext(x, normalized_shape, weight, bias, eps):
    x, axes = x.asnumpy().astype(np.float64), tuple(range(-len(normalized_shape), 0))
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    rstd = 1 / np.sqrt(variance + eps)
    result = (x - mean) * rstd * weight.asnumpy() + bias.asnumpy()
    return tuple(Tensor(value.astype(np.float32)) for value in (result, mean, rstd))


def gelu_ext(x, approximate):
    assert approximate == "none"  # the other value is the tanh approximation
    x = x.asnumpy().astype(np.float64)
    return Tensor((x * ndtr(x)).astype(np.float32))


def set_random(cell):
    for parameter in cell.get_parameters():
        parameter.set_data(Tensor(random(*parameter.shape)))
    return cell


CASES = {
    "take rows": (lambda: TakeRows(1), "index_select", index_select,
                  (random(2, 5, 3), np.array([4, 0, 0, 2], np.int32))),
    "take rows of a table": (lambda: TakeRows(0), "index_select", index_select,
                             (random(5, 3), np.array([1, 1], np.int32))),
    "token mean": (TokenMean, "", None, (random(2, 5, 3),)),
    "dense": (lambda: Dense(3, 4), "", None, (random(2, 5, 3),)),
    "dense without bias": (lambda: Dense(3, 4, has_bias=False), "", None, (random(2, 5, 3),)),
    "layer norm": (lambda: LayerNorm(6), "normalize", layer_norm_ext, (random(2, 5, 6),)),
    "layer norm of equal numbers": (lambda: LayerNorm(6), "normalize", layer_norm_ext, (np.ones((2, 6), np.float32),)),
    "GELU": (GELU, "gelu", gelu_ext, (random(4, 50) * 3,)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_both_forms_compute_the_same(name):
    build, primitive, stand_in, inputs = CASES[name]
    cell, inputs = set_random(build()), list(map(Tensor, inputs))
    assert cell.for_ascend is False
    plain = cell(*inputs).asnumpy()
    use_ascend_forms(cell, True)
    if primitive:
        asked = []

        def record(*arguments):
            asked.append(primitive)
            return stand_in(*arguments)

        assert hasattr(cell, primitive)
        object.__setattr__(cell, primitive, record)
    ascend = cell(*inputs).asnumpy()
    assert ascend.dtype == plain.dtype and ascend.shape == plain.shape
    np.testing.assert_allclose(ascend, plain, rtol=1e-5, atol=2e-6)
    assert not primitive or asked == [primitive]


@pytest.mark.parametrize("name", ["dense", "dense without bias", "token mean"])
def test_both_forms_have_the_same_gradients(name):
    """Of those that run on a CPU in both forms."""
    build, _, _, (x,) = CASES[name]
    cell = set_random(build())
    factor = Tensor(random(*cell(Tensor(x)).shape))

    def gradients(enabled):
        use_ascend_forms(cell, enabled)
        weights = ms.ParameterTuple(cell.trainable_params())
        grad = ms.grad(lambda x: (cell(x) * factor).sum(), 0, weights if len(weights) else None)
        found = grad(Tensor(x))
        return [found[0], *found[1]] if len(weights) else [found]

    for ascend, plain in zip(gradients(True), gradients(False)):
        np.testing.assert_allclose(ascend.asnumpy(), plain.asnumpy(), rtol=1e-5, atol=1e-6)


def test_one_switch_reaches_every_form_of_a_network():
    network = nn.SequentialCell(LayerNorm(4), Mlp(4, 8, nn.Identity(), nn.Identity()))
    for enabled in (True, False):
        use_ascend_forms(network, enabled)
        forms = [cell.for_ascend for _, cell in network.cells_and_names() if isinstance(cell, AscendForm)]
        assert forms == [enabled] * 4


@pytest.mark.parametrize(
    ("target", "chip", "jit_level", "expected"),
    [("Ascend", "ascend910b", "", True), ("Ascend", "ascend910_93", "O0", True), ("Ascend", "ascend910b", "O1", True),
     ("Ascend", "ascend910b", "O2", False), ("Ascend", "ascend910", "", False), ("CPU", "ascend910b", "", False),
     ("GPU", "", "", False)],
)  # fmt: skip
def test_newer_kernels_are_those_of_atlas_a2_and_later_without_ge(monkeypatch, target, chip, jit_level, expected):
    context = {"device_target": target, "jit_level": jit_level}
    monkeypatch.setattr(ms, "get_context", lambda name: context[name])
    monkeypatch.setattr(ascend_forms, "ascend_chip", lambda: chip)
    assert has_newer_kernels() is expected
    assert Dense(2, 2).for_ascend is expected


def test_the_context_has_the_level_that_the_start_up_sets():
    """`has_newer_kernels` reads it by a name that is not documented."""
    context = ms.context._context()
    before, settings = ms.get_context("jit_level"), context.jit_config
    ms.set_context(jit_config={"jit_level": "O2"})
    try:
        assert ms.get_context("jit_level") == "O2"
    finally:
        context.set_param(ms_ctx_param.jit_level, before)  # set_context refuses the default, which is ""
        context.jit_config = settings
    assert ms.get_context("jit_level") == before


def test_an_exported_network_holds_the_plain_operations():
    network = nn.SequentialCell(LayerNorm(4), Dense(4, 4), GELU())
    use_ascend_forms(network, True)
    prepare_for_export(network)
    assert not any(cell.for_ascend for _, cell in network.cells_and_names() if isinstance(cell, AscendForm))
