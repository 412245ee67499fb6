"""Dropout: rate, scaling, independence, a function of key and counter alone. Drop path: what its factors do."""

import itertools

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor
from scipy import stats

from focal.config import load_config
from focal.models import create_model
from focal.models.layers import Dropout, DropPath, HashedUniform
from tests.numerics.reference_cases import case_config

# Every statistical bound below fails by chance once in 10^6; the draws are fixed by the seeds, so it never does here.
P_VALUE = 1e-6

pytestmark = pytest.mark.usefixtures("pynative_mode")


def as_counter(value):
    return Parameter(Tensor(value, ms.int32), name="random_counter", requires_grad=False)


def uniform(key=5, counter=0, shape=(1000,)):
    return HashedUniform(key)(Tensor(np.zeros(shape, np.float32)), as_counter(counter)).asnumpy()


def dropout(rate, key=5, counter=0):
    return Dropout(rate, key, as_counter(counter))


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


def assert_share(count, total, probability):
    """A two-sided exact binomial test."""
    assert stats.binomtest(int(count), int(total), probability).pvalue > P_VALUE, (count, total, probability)


def assert_independent(left, right):
    """Chi-square test of the 8 x 8 table of two uniform sequences."""
    table = np.histogram2d(left.reshape(-1), right.reshape(-1), bins=8, range=[[0, 1], [0, 1]])[0]
    assert stats.chi2_contingency(table).pvalue > P_VALUE


# ---- the numbers ----


def test_numbers_are_uniform():
    values = uniform(shape=(200_000,))
    assert values.dtype == np.float32 and values.min() >= 0 and values.max() < 1
    counts = np.histogram(values, bins=100, range=(0, 1))[0]
    assert stats.chisquare(counts).pvalue > P_VALUE
    assert stats.kstest(values[:20_000], "uniform").pvalue > P_VALUE
    assert len(np.unique(values)) > 198_000  # 24 bits, a bijection before they are cut


@pytest.mark.parametrize("bit", range(24))
def test_every_bit_is_fair(bit):
    values = (uniform(shape=(20_000,)) * 2**24).astype(np.int64)
    assert_share((values >> bit & 1).sum(), len(values), 0.5)


def test_reference_values():
    for key, counter in ((0, 0), (1234, 123_456), (2**31 - 1, 2**31 - 1)):
        np.testing.assert_array_equal(uniform(key, counter, (500,)), reference(key, counter, 500))


def test_same_key_and_counter_give_the_same_numbers():
    np.testing.assert_array_equal(uniform(3, 17), uniform(3, 17))
    np.testing.assert_array_equal(uniform(3, 17, (10, 100)).reshape(-1), uniform(3, 17, (1000,)))


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


def test_neighbours_are_independent():
    values = uniform(shape=(50_000,))
    for lag in (1, 2, 3, 16, 256):
        assert_independent(values[lag:], values[:-lag])


@pytest.mark.parametrize("start", [0, 2**20, 2**31 - 20_000])
def test_successive_counters_are_independent(start):
    """What four samples of a block go through, step after step; by the reference, which is quicker."""
    values = reference(5, start + np.arange(20_000), 4)  # (steps, samples)
    for sample in range(4):
        assert stats.kstest(values[:, sample], "uniform").pvalue > P_VALUE
        for lag in (1, 2, 8):  # eight ranks take every eighth counter
            assert_independent(values[lag:, sample], values[:-lag, sample])
        runs = bits(values[:, sample])
        assert_share((runs[1:] == runs[:-1]).sum(), len(runs) - 1, 0.5)
    for left, right in itertools.combinations(range(4), 2):
        assert_independent(values[:, left], values[:, right])


# ---- dropout ----


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_dropout(rate, dtype):
    cell = dropout(rate).set_train(True)
    x = np.random.default_rng(0).uniform(1, 2, (40, 50, 20)).astype(dtype)
    result = cell(Tensor(x)).asnumpy()
    assert result.dtype == dtype
    dropped = result == 0
    assert_share(dropped.sum(), dropped.size, rate)
    expected = x.astype(np.float64) / (1 - rate)
    np.testing.assert_allclose(result[~dropped], expected[~dropped], rtol=1e-6 if dtype == np.float32 else 2e-3)
    gradient = ms.grad(lambda t: cell(t).sum())(Tensor(x)).asnumpy()  # the same counter: the same mask
    np.testing.assert_allclose(gradient, ~dropped / (1 - rate), rtol=2e-3)


def test_dropout_in_evaluation_or_with_rate_0_is_the_identity():
    x = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    cell = dropout(0.7)
    np.testing.assert_array_equal(cell.set_train(False)(Tensor(x)).asnumpy(), x)
    assert (cell.set_train(True)(Tensor(x)).asnumpy() != x).any()
    np.testing.assert_array_equal(Dropout(0.0, 5, None).set_train(True)(Tensor(x)).asnumpy(), x)


# ---- drop path ----


@pytest.mark.parametrize("spread_first", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_drop_path_multiplies_whole_samples_and_their_gradients(spread_first, dtype):
    """On CPU and elsewhere alike."""
    cell = DropPath(0.5).set_train(True)
    cell.scale_samples.spread_first = spread_first
    x = np.random.default_rng(0).uniform(1, 2, (4, 2, 3)).astype(dtype)
    factors = np.array([0, 2, 2, 0], np.float32).reshape(4, 1)
    expected = x * factors.reshape(4, 1, 1).astype(dtype)
    result = cell(Tensor(x), Tensor(factors)).asnumpy()
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, expected)
    gradient = ms.grad(lambda t: cell(t, Tensor(factors)).sum())(Tensor(x)).asnumpy()
    np.testing.assert_array_equal(gradient, np.broadcast_to(factors.reshape(4, 1, 1), x.shape))


def test_drop_path_in_evaluation_or_with_rate_0_is_the_identity():
    x, factors = Tensor(np.ones((4, 2, 3), np.float32)), Tensor(np.zeros((4, 1), np.float32))
    assert (DropPath(0.7).set_train(False)(x, factors).asnumpy() == 1).all()
    assert (DropPath(0.7).set_train(True)(x, factors).asnumpy() == 0).all()
    assert (DropPath(0.0).set_train(True)(x, None).asnumpy() == 1).all()


def dropout_cells(network):
    return [cell for _, cell in network.cells_and_names() if isinstance(cell, Dropout)]


def test_rates_of_a_network():
    """Drop path rises linearly over depth, alike for both branches of a block; dropouts where the settings put them."""
    network = create_model(
        case_config("nano_v1", depths=[1, 2, 3, 1], drop_path_rate=0.3, drop_rate=0.2, attn_drop_rate=0.1)
    )
    blocks = [block for stage in network.layers for block in stage.blocks]
    expected = [0.3 * index / 6 for index in range(7)]
    np.testing.assert_allclose([block.drop_path1.rate for block in blocks], expected, atol=1e-12)
    np.testing.assert_allclose([block.drop_path2.rate for block in blocks], expected, atol=1e-12)
    for block in blocks:
        rates = (
            block.attn.windowed_products.attn_drop.rate,
            block.attn.proj_drop.rate,
            block.mlp.drop1.rate,
            block.mlp.drop2.rate,
        )
        assert rates == (0.1, 0.2, 0.2, 0.2)
    assert network.pos_drop.rate == 0.2
    np.testing.assert_allclose(network.keep_rates.asnumpy()[::2, 0], 1 - np.array(expected), rtol=1e-6)


def test_published_drop_path_reaches_its_rate():
    network = create_model(case_config("nano_v1", depths=[2, 2, 6, 2], drop_path_rate=0.5))
    last = network.layers[3].blocks[1].drop_path1.rate
    assert (network.layers[0].blocks[0].drop_path1.rate, last) == (0.0, 0.5)


def test_dropouts_of_a_network_have_keys_of_their_own_and_one_counter():
    rates = {"depths": [2, 2, 3, 2], "drop_rate": 0.1, "attn_drop_rate": 0.1}
    network = create_model(case_config("nano_v2", **rates))
    cells = dropout_cells(network)
    assert len(cells) == 1 + 4 * 9
    assert len({cell.uniform.key for cell in cells}) == len(cells)
    assert all(cell.counter is network.random_counter for cell in cells)
    assert not network.random_counter.requires_grad and network.random_counter.dtype == ms.int32
    other = create_model(case_config("nano_v2", seed=1, **rates))
    assert {cell.uniform.key for cell in dropout_cells(other)}.isdisjoint({cell.uniform.key for cell in cells})


def test_a_network_without_dropout_has_no_counter():
    network = create_model(case_config("nano_v2", drop_path_rate=0.5))
    assert network.random_counter is None
    assert "random_counter" not in {parameter.name for parameter in network.get_parameters()}


@pytest.fixture(scope="module")
def tiny_config():
    per_stage = {"focal_levels": [2, 2], "focal_windows": [3, 3], "expand_sizes": [1, 1], "focal_stages": [0, 1]}

    def make(**rates):
        return load_config(
            {"arch": "focal_own", "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4, **per_stage,
             "image_size": 32, **rates}
        )  # fmt: skip

    return make


IMAGES = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)


def test_equal_counters_give_equal_logits_and_evaluation_is_without_randomness(tiny_config):
    config = tiny_config(drop_path_rate=0.0, drop_rate=0.1, attn_drop_rate=0.1)
    network = create_model(config).set_train(True)

    def logits(counter):
        network.random_counter.set_data(Tensor(counter, ms.int32))
        return network(Tensor(IMAGES)).asnumpy()

    first = logits(0)
    assert np.abs(logits(1) - first).max() > 1e-4
    np.testing.assert_array_equal(logits(0), first)
    twin = create_model(config).set_train(True)
    np.testing.assert_array_equal(twin(Tensor(IMAGES)).asnumpy(), first)
    network.set_train(False)
    evaluated = logits(0)
    np.testing.assert_array_equal(logits(1), evaluated)
    assert np.abs(evaluated - first).max() > 1e-4


def test_a_sample_whose_branches_are_all_dropped_is_what_goes_around_them(tiny_config):
    """The factors of a sample act on it alone, and each row on one branch of one block."""
    network = create_model(tiny_config(drop_path_rate=0.5)).set_train(True)
    evaluated = create_model(tiny_config(drop_path_rate=0.5)).set_train(False)(Tensor(IMAGES)).asnumpy()
    ones = np.ones((4, 4), np.float32)  # (2 * blocks, B)
    np.testing.assert_allclose(network(Tensor(IMAGES), Tensor(ones)).asnumpy(), evaluated, rtol=1e-5, atol=1e-6)
    distinct = set()
    for row in (2, 3):  # rows 0 and 1 belong to the first block, which never drops
        factors = ones.copy()
        factors[row, 1] = 0
        logits = network(Tensor(IMAGES), Tensor(factors)).asnumpy()
        changed = np.abs(logits - evaluated).max(1) > 1e-4
        assert changed.tolist() == [False, True, False, False]
        distinct.add(logits[1].tobytes())
    assert len(distinct) == 2


def test_a_network_that_is_given_no_factors_draws_its_own(tiny_config):
    network = create_model(tiny_config(drop_path_rate=0.5)).set_train(True)
    drawn = [network(Tensor(IMAGES)).asnumpy() for _ in range(8)]
    assert len({logits.tobytes() for logits in drawn}) > 1


def test_attention_dropout_of_samples_and_heads_is_independent():
    """The mask has the shape of the attention weights: no two samples, heads or queries share it."""
    cell = dropout(0.5).set_train(True)
    kept = cell(Tensor(np.ones((4, 6, 16, 50), np.float32))).asnumpy() > 0
    flat = kept.reshape(-1, 50)
    assert len(np.unique(flat, axis=0)) == len(flat)
    for axis in range(4):
        moved = np.moveaxis(kept, axis, 0)
        assert_share((moved[0] == moved[1]).sum(), moved[0].size, 0.5)
