"""Exact GELU and the normal distribution function against SciPy in double precision."""

import mindspore as ms
import numpy as np
import pytest
from scipy.special import expit, ndtr

from focal.models.layers import _LOGIT_POLYNOMIAL, GELU, NormalCdf

NEAR = np.concatenate([np.linspace(-9, 9, 4001), np.geomspace(1e-8, 1, 200), -np.geomspace(1e-8, 1, 200)])
FAR = np.array([-6e4, -3e3, -300.0, -30.0, -15.0, 15.0, 30.0, 300.0, 3e3, 6e4])
# MindSpore's sigmoid on CPU is off by up to 8.2e-7, eight times the fit. Half of float16's spacing around
# one is 4.9e-4.
TOLERANCE = {"float32": {"rtol": 1e-6, "atol": 1e-6}, "float16": {"rtol": 1.5e-3, "atol": 1e-6}}


def inputs(dtype, values):
    """Values as `dtype`, and in double precision what that rounding left of them."""
    rounded = values.astype(dtype)
    return ms.Tensor(rounded), rounded.astype(np.float64)


def test_polynomial_is_as_good_as_its_comment_says():
    x = np.linspace(-60, 60, 600_001)
    error = np.abs(expit(x * np.polyval(_LOGIT_POLYNOMIAL[::-1], x * x)) - ndtr(x))
    assert error.max() < 1.1e-7
    assert (error * np.abs(x)).max() < 6.6e-8


@pytest.fixture(params=["polynomial", "erf"])
def form(request, pynative_mode):
    """Both forms of the distribution function: CPU's, and the one of other devices and of export."""

    def build(kind):
        cell = kind()
        for _, part in cell.cells_and_names():
            if isinstance(part, NormalCdf):
                part.use_polynomial = request.param == "polynomial"
        return cell

    build.name = request.param
    return build


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("values", [NEAR, FAR], ids=["near", "far"])
def test_values(form, dtype, values):
    x, exact = inputs(dtype, values)
    tolerance = dict(TOLERANCE[dtype])
    if form.name == "erf":  # 0.5 + 0.5 * erf cancels on the negative side
        tolerance["atol"] = {"float32": 1e-6, "float16": 4e-3}[dtype]
    result = form(NormalCdf)(x).asnumpy()
    assert result.dtype == dtype
    np.testing.assert_allclose(result.astype(np.float64), ndtr(exact), **tolerance)
    result = form(GELU)(x).asnumpy()
    assert result.dtype == dtype
    np.testing.assert_allclose(result.astype(np.float64), exact * ndtr(exact), **tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("values", [NEAR, FAR], ids=["near", "far"])
def test_gradient(form, dtype, values):
    x, exact = inputs(dtype, values)
    density = np.exp(-(exact**2) / 2) / np.sqrt(2 * np.pi)
    tolerance = {"float32": {"rtol": 2e-6, "atol": 1e-6}, "float16": {"rtol": 2e-3, "atol": 5e-3}}[dtype]
    gelu = form(GELU)
    gradient = ms.grad(lambda t: gelu(t).sum())(x).asnumpy().astype(np.float64)
    np.testing.assert_allclose(gradient, ndtr(exact) + exact * density, **tolerance)


def test_graph_mode_equals_pynative_mode():
    x, exact = inputs("float32", NEAR)
    np.testing.assert_allclose(GELU()(x).asnumpy(), exact * ndtr(exact), **TOLERANCE["float32"])
    gradient = ms.grad(GELU())(x).asnumpy()
    density = np.exp(-(exact**2) / 2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(gradient, ndtr(exact) + exact * density, rtol=2e-6, atol=1e-6)


def test_it_is_not_the_tanh_approximation(pynative_mode):
    x, exact = inputs("float32", np.linspace(-3, 3, 61))
    tanh_form = 0.5 * exact * (1 + np.tanh(np.sqrt(2 / np.pi) * (exact + 0.044715 * exact**3)))
    assert np.abs(GELU()(x).asnumpy() - tanh_form).max() > 1e-4
