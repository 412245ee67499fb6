"""Both forms of the operations that differ on a CPU, against NumPy and SciPy: values, gradients, random numbers."""

from __future__ import annotations

import itertools

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops
from scipy import stats
from scipy.special import expit, ndtr

from focal.models.ascend_forms import LayerNorm
from focal.models.cpu_forms import (
    _LOGIT_POLYNOMIAL,
    AddToSamples,
    CpuForm,
    LayerNormOfRows,
    NormalCdf,
    ScaleSamples,
    SoftmaxGradient,
    UniformNumbers,
    use_cpu_forms,
)

# Every statistical bound below fails by chance once in 10^6; the draws are fixed by the seeds, so it never does here.
P_VALUE = 1e-6
SHAPE = (3, 4, 5)
NEAR = np.concatenate([np.linspace(-9, 9, 4001), np.geomspace(1e-8, 1, 200), -np.geomspace(1e-8, 1, 200)])
FAR = np.array([-6e4, -3e3, -300.0, -30.0, -15.0, 15.0, 30.0, 300.0, 3e3, 6e4])

pynative = pytest.mark.usefixtures("pynative_mode")
forms = pytest.mark.parametrize("on_cpu", [True, False], ids=["cpu", "elsewhere"])


def build(kind, on_cpu):
    cell = kind()
    use_cpu_forms(cell, on_cpu)
    return cell


def test_one_switch_reaches_every_form_of_a_network():
    network = nn.SequentialCell(nn.SequentialCell(NormalCdf()), SoftmaxGradient())
    assert [cell.for_cpu for _, cell in network.cells_and_names() if isinstance(cell, CpuForm)] == [True, True]
    use_cpu_forms(network, False)
    assert [cell.for_cpu for _, cell in network.cells_and_names() if isinstance(cell, CpuForm)] == [False, False]


def random(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


@forms
def test_softmax_gradient_equals_the_formula(on_cpu):
    logits, dout = random(*SHAPE), random(*SHAPE, 1)[..., 0]
    out = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = (dout - (dout * out).sum(-1, keepdims=True)) * out
    gradient = build(SoftmaxGradient, on_cpu)(Tensor(dout), Tensor(out))
    np.testing.assert_allclose(gradient.asnumpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 100.0], ids=["centred", "far_from_zero"])
def test_the_gradient_of_layer_norm_equals_the_formula(offset):
    x, dout, gamma, beta = random(3, 4, 50) * 2 + offset, random(3, 4, 50) + 1, random(50), random(50) + 2
    rows, drows = x.astype(np.float64).reshape(12, 50), dout.astype(np.float64).reshape(12, 50)
    deviation = np.sqrt(rows.var(1, keepdims=True) + 1e-5)
    normalised, scaled = (rows - rows.mean(1, keepdims=True)) / deviation, drows * gamma
    mean = scaled.mean(1, keepdims=True)
    dx = (scaled - mean - normalised * (scaled * normalised).mean(1, keepdims=True)) / deviation
    network = FirstOutput(LayerNormOfRows(50, 1e-5))
    arguments = [Tensor(array) for array in (x, gamma, beta)]
    expected = (normalised * gamma + beta).reshape(x.shape)
    tolerance = 1e-5 * max(1.0, offset)  # the mean itself is rounded to float32
    np.testing.assert_allclose(network(*arguments).asnumpy(), expected, atol=tolerance)
    gradient = ops.GradOperation(get_all=True, sens_param=True)(network)
    found = [array.asnumpy() for array in gradient(*arguments, Tensor(dout))]
    np.testing.assert_allclose(found[0], dx.reshape(x.shape), atol=tolerance)
    np.testing.assert_allclose(found[1], (drows * normalised).sum(0), atol=10 * tolerance)
    np.testing.assert_allclose(found[2], drows.sum(0), atol=1e-5)


@pytest.mark.parametrize("dtype", [ms.float32, ms.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_both_forms_of_layer_norm_have_the_same_gradients(dtype, frozen):
    x, dout = Tensor(random(2, 3, 40)).astype(dtype), Tensor(random(2, 3, 40)).astype(dtype)
    results = []
    for on_cpu in (True, False):
        norm = LayerNorm(40)
        use_cpu_forms(norm, on_cpu)
        norm.gamma.set_data(Tensor(random(40)))
        norm.gamma.requires_grad = not frozen
        gradient = ops.GradOperation(get_all=True, get_by_list=True, sens_param=True)(norm, norm.trainable_params())
        (dx,), parameters = gradient(x, dout)
        assert dx.dtype == dtype and len(parameters) == (1 if frozen else 2)
        results.append([array.astype(ms.float32).asnumpy() for array in (dx, *parameters)])
    tolerance = 1e-5 if dtype == ms.float32 else 1e-2
    for found, expected in zip(*results):
        np.testing.assert_allclose(found, expected, atol=tolerance)


class FirstOutput(nn.Cell):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def construct(self, *inputs):
        return self.cell(*inputs)[0]


@forms
@pytest.mark.parametrize("training", [True, False])
def test_an_addend_is_added_to_every_sample_and_its_gradient_is_summed(on_cpu, training):
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
def test_samples_are_scaled_and_no_gradient_reaches_the_factors(on_cpu):
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


# ---- normal distribution ----


def test_the_polynomial_is_as_good_as_its_comment_says():
    x = np.linspace(-60, 60, 600_001)
    error = np.abs(expit(x * np.polyval(_LOGIT_POLYNOMIAL[::-1], x * x)) - ndtr(x))
    assert error.max() < 1.1e-7
    assert (error * np.abs(x)).max() < 6.6e-8


@pynative
@forms
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("values", [NEAR, FAR], ids=["near", "far"])
def test_the_normal_distribution_function_equals_scipys(on_cpu, dtype, values):
    # MindSpore's sigmoid on CPU is off by up to 8.2e-7, eight times the fit. Half of float16's spacing around one is
    # 4.9e-4. Elsewhere 0.5 + 0.5 * erf cancels on the negative side.
    x = values.astype(dtype)
    tolerance = {"float32": {"rtol": 1e-6, "atol": 1e-6}, "float16": {"rtol": 1.5e-3, "atol": 1e-6}}[dtype]
    if not on_cpu:
        tolerance["atol"] = {"float32": 1e-6, "float16": 4e-3}[dtype]
    result = build(NormalCdf, on_cpu)(Tensor(x)).asnumpy()
    assert result.dtype == dtype
    np.testing.assert_allclose(result.astype(np.float64), ndtr(x.astype(np.float64)), **tolerance)


# ---- uniform numbers ----


def as_counter(value):
    return Parameter(Tensor(value, ms.int32), name="random_counter", requires_grad=False)


def uniform(key=5, counter=0, shape=(1000,)):
    return UniformNumbers(key)(Tensor(np.zeros(shape, np.float32)), as_counter(counter)).asnumpy()


def reference(key, counter, count):
    """The hash, once more in NumPy with unsigned integers; `counter` may be an array."""

    def mix(x):
        for shift, multiplier in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
            x = (x ^ (x >> np.uint32(shift))) * np.uint32(multiplier)
        return x ^ (x >> np.uint32(15))

    counter = np.atleast_1d(counter).astype(np.uint32)
    mixed = mix(counter * np.uint32(0x9E3779B1) + np.uint32(key))
    values = mix(np.arange(count, dtype=np.uint32) + mixed[:, None]) & np.uint32(0xFFFFFF)
    return (values / 2**24).astype(np.float32).squeeze(0 if len(counter) == 1 else ())


def bits(values):
    return (values >= 0.5).astype(int)


def assert_fraction(count, total, probability):
    """A two-sided exact binomial test."""
    assert stats.binomtest(int(count), int(total), probability).pvalue > P_VALUE, (count, total, probability)


def assert_independent(left, right):
    """Chi-square test of the 8 x 8 table of two uniform sequences."""
    table = np.histogram2d(left.reshape(-1), right.reshape(-1), bins=8, range=[[0, 1], [0, 1]])[0]
    assert stats.chi2_contingency(table).pvalue > P_VALUE


@pynative
def test_numbers_are_uniform():
    values = uniform(shape=(200_000,))
    assert values.dtype == np.float32 and values.min() >= 0 and values.max() < 1
    counts = np.histogram(values, bins=100, range=(0, 1))[0]
    assert stats.chisquare(counts).pvalue > P_VALUE
    assert stats.kstest(values[:20_000], "uniform").pvalue > P_VALUE
    assert len(np.unique(values)) > 198_000  # 24 bits, a bijection before they are cut


@pynative
def test_every_bit_is_fair():
    values = (uniform(shape=(20_000,)) * 2**24).astype(np.int64)
    for bit in range(24):
        assert_fraction((values >> bit & 1).sum(), len(values), 0.5)


@pynative
def test_the_hash_equals_the_same_hash_in_numpy():
    for key, counter in ((0, 0), (1234, 123_456), (2**31 - 1, 2**31 - 1)):
        np.testing.assert_array_equal(uniform(key, counter, (500,)), reference(key, counter, 500))


@pynative
def test_the_same_key_and_counter_give_the_same_numbers():
    np.testing.assert_array_equal(uniform(3, 17), uniform(3, 17))
    np.testing.assert_array_equal(uniform(3, 17, (10, 100)).reshape(-1), uniform(3, 17, (1000,)))


@pynative
@pytest.mark.parametrize(
    ("one", "other"),
    [({"key": 0}, {"key": 1}), ({"counter": 4}, {"counter": 5}), ({"counter": 4}, {"counter": 4 + 2**16}),
     ({"key": 2**30}, {"key": 2**31 - 1}), ({"counter": 0}, {"counter": 2**31 - 1})],
)  # fmt: skip
def test_another_key_or_counter_gives_independent_numbers(one, other):
    left, right = uniform(**one, shape=(50_000,)), uniform(**other, shape=(50_000,))
    assert_independent(left, right)
    for lag in (1, 2, 49):  # nor is one the other, moved along
        assert_independent(left[lag:], right[:-lag])


@pynative
def test_neighbouring_numbers_are_independent():
    values = uniform(shape=(50_000,))
    for lag in (1, 2, 3, 16, 256):
        assert_independent(values[lag:], values[:-lag])


@pynative
@pytest.mark.parametrize("start", [0, 2**20, 2**31 - 20_000])
def test_successive_counters_are_independent(start):
    """The numbers of four samples of a block, step after step; from the NumPy hash, which is quicker."""
    values = reference(5, start + np.arange(20_000), 4)  # (steps, samples)
    for sample in range(4):
        assert stats.kstest(values[:, sample], "uniform").pvalue > P_VALUE
        for lag in (1, 2, 8):  # eight ranks take every eighth counter
            assert_independent(values[lag:, sample], values[:-lag, sample])
        runs = bits(values[:, sample])
        assert_fraction((runs[1:] == runs[:-1]).sum(), len(runs) - 1, 0.5)
    for left, right in itertools.combinations(range(4), 2):
        assert_independent(values[:, left], values[:, right])
