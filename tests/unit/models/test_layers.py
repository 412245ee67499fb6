"""Exact GELU against SciPy; dropout and drop path by what they zero and scale."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor
from scipy import stats
from scipy.special import ndtr

from focal.models.cpu_forms import use_cpu_forms
from focal.models.layers import GELU, Dropout, DropPath

NEAR = np.concatenate([np.linspace(-9, 9, 4001), np.geomspace(1e-8, 1, 200), -np.geomspace(1e-8, 1, 200)])
FAR = np.array([-6e4, -3e3, -300.0, -30.0, -15.0, 15.0, 30.0, 300.0, 3e3, 6e4])
# MindSpore's sigmoid on CPU is off by up to 8.2e-7, eight times the fit. Half of float16's spacing around
# one is 4.9e-4.
TOLERANCE = {"float32": {"rtol": 1e-6, "atol": 1e-6}, "float16": {"rtol": 1.5e-3, "atol": 1e-6}}


P_VALUE = 1e-6  # of the statistical bounds; the seeds are fixed, so none fails by chance

pynative = pytest.mark.usefixtures("pynative_mode")


# ---- GELU ----


def inputs(dtype, values):
    """Values as `dtype`, and the rounded values in double precision."""
    rounded = values.astype(dtype)
    return ms.Tensor(rounded), rounded.astype(np.float64)


@pytest.fixture(params=["cpu", "elsewhere"])
def gelu(request, pynative_mode):
    """GELU in the form for a CPU, and in that of other devices and of export."""
    cell = GELU()
    use_cpu_forms(cell, request.param == "cpu")
    return cell


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("values", [NEAR, FAR], ids=["near", "far"])
def test_gelu_is_x_times_the_normal_distribution_function(gelu, dtype, values):
    x, exact = inputs(dtype, values)
    tolerance = dict(TOLERANCE[dtype])
    if not gelu.gelu_and_slope.normal_cdf.for_cpu:  # 0.5 + 0.5 * erf cancels on the negative side
        tolerance["atol"] = {"float32": 1e-6, "float16": 4e-3}[dtype]
    result = gelu(x).asnumpy()
    assert result.dtype == dtype
    np.testing.assert_allclose(result.astype(np.float64), exact * ndtr(exact), **tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("values", [NEAR, FAR], ids=["near", "far"])
def test_the_gradient_of_gelu_is_that_of_the_formula(gelu, dtype, values):
    x, exact = inputs(dtype, values)
    density = np.exp(-(exact**2) / 2) / np.sqrt(2 * np.pi)
    tolerance = {"float32": {"rtol": 2e-6, "atol": 1e-6}, "float16": {"rtol": 2e-3, "atol": 5e-3}}[dtype]
    gradient = ms.grad(lambda t: gelu(t).sum())(x).asnumpy().astype(np.float64)
    np.testing.assert_allclose(gradient, ndtr(exact) + exact * density, **tolerance)


def test_gelu_and_its_gradient_are_the_same_in_graph_mode():
    x, exact = inputs("float32", NEAR)
    np.testing.assert_allclose(GELU()(x).asnumpy(), exact * ndtr(exact), **TOLERANCE["float32"])
    gradient = ms.grad(GELU())(x).asnumpy()
    density = np.exp(-(exact**2) / 2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(gradient, ndtr(exact) + exact * density, rtol=2e-6, atol=1e-6)


def test_gelu_is_not_the_tanh_approximation(pynative_mode):
    x, exact = inputs("float32", np.linspace(-3, 3, 61))
    tanh_form = 0.5 * exact * (1 + np.tanh(np.sqrt(2 / np.pi) * (exact + 0.044715 * exact**3)))
    assert np.abs(GELU()(x).asnumpy() - tanh_form).max() > 1e-4


# ---- dropout ----


def dropout(rate, key=5):
    return Dropout(rate, key, Parameter(Tensor(0, ms.int32), name="random_counter", requires_grad=False))


def assert_fraction(count, total, probability):
    """A two-sided exact binomial test."""
    assert stats.binomtest(int(count), int(total), probability).pvalue > P_VALUE, (count, total, probability)


@pynative
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_dropout_zeroes_a_fraction_of_the_entries_and_scales_the_others(rate, dtype):
    cell = dropout(rate).set_train(True)
    x = np.random.default_rng(0).uniform(1, 2, (40, 50, 20)).astype(dtype)
    result = cell(Tensor(x)).asnumpy()
    assert result.dtype == dtype
    dropped = result == 0
    assert_fraction(dropped.sum(), dropped.size, rate)
    expected = x.astype(np.float64) / (1 - rate)
    np.testing.assert_allclose(result[~dropped], expected[~dropped], rtol=1e-6 if dtype == np.float32 else 2e-3)
    gradient = ms.grad(lambda t: cell(t).sum())(Tensor(x)).asnumpy()  # the same counter: the same mask
    np.testing.assert_allclose(gradient, ~dropped / (1 - rate), rtol=2e-3)


@pynative
def test_dropout_in_evaluation_or_with_rate_0_is_the_identity():
    x = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    cell = dropout(0.7)
    np.testing.assert_array_equal(cell.set_train(False)(Tensor(x)).asnumpy(), x)
    assert (cell.set_train(True)(Tensor(x)).asnumpy() != x).any()
    np.testing.assert_array_equal(Dropout(0.0, 5, None).set_train(True)(Tensor(x)).asnumpy(), x)


@pynative
def test_no_two_samples_heads_or_queries_share_a_dropout_mask():
    cell = dropout(0.5).set_train(True)
    kept = cell(Tensor(np.ones((4, 6, 16, 50), np.float32))).asnumpy() > 0
    flat = kept.reshape(-1, 50)
    assert len(np.unique(flat, axis=0)) == len(flat)
    for axis in range(4):
        moved = np.moveaxis(kept, axis, 0)
        assert_fraction((moved[0] == moved[1]).sum(), moved[0].size, 0.5)


# ---- drop path ----


@pynative
@pytest.mark.parametrize("for_cpu", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_drop_path_multiplies_whole_samples_and_their_gradients(for_cpu, dtype):
    cell = DropPath(0.5).set_train(True)
    use_cpu_forms(cell, for_cpu)
    x = np.random.default_rng(0).uniform(1, 2, (4, 2, 3)).astype(dtype)
    factors = np.array([0, 2, 2, 0], np.float32).reshape(4, 1)
    expected = x * factors.reshape(4, 1, 1).astype(dtype)
    result = cell(Tensor(x), Tensor(factors)).asnumpy()
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, expected)
    gradient = ms.grad(lambda t: cell(t, Tensor(factors)).sum())(Tensor(x)).asnumpy()
    np.testing.assert_array_equal(gradient, np.broadcast_to(factors.reshape(4, 1, 1), x.shape))


@pynative
def test_drop_path_in_evaluation_or_with_rate_0_is_the_identity():
    x, factors = Tensor(np.ones((4, 2, 3), np.float32)), Tensor(np.zeros((4, 1), np.float32))
    assert (DropPath(0.7).set_train(False)(x, factors).asnumpy() == 1).all()
    assert (DropPath(0.7).set_train(True)(x, factors).asnumpy() == 0).all()
    assert (DropPath(0.0).set_train(True)(x, None).asnumpy() == 1).all()
