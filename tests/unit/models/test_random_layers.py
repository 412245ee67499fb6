"""Dropout and drop path: rate, scaling, independence, and that they are a function of seed, Cell and counter alone."""

import itertools
import zlib

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor
from scipy import stats

from focal.config import load_config
from focal.models import create_model
from focal.models.focal_transformer import RandomSource
from focal.models.layers import CounterUniform, Dropout, DropPath
from tests.numerics.reference_cases import case_config

# Every statistical bound below fails by chance once in 10^6; the draws are fixed by the seeds, so it never does here.
P_VALUE = 1e-6

pytestmark = pytest.mark.usefixtures("pynative_mode")


def source(seed=0, counter=0):
    random = RandomSource(seed)
    random.counter.set_data(Tensor(counter, ms.int32))
    return random


def uniform(name="a", seed=0, counter=0, shape=(1000,)):
    return source(seed, counter).uniform(name)(shape).asnumpy()


def reference(name, seed, counter, count):
    """The hash, once more in NumPy with unsigned integers; `counter` may be an array."""

    def mix(x):
        for shift, multiplier in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
            x = (x ^ (x >> np.uint32(shift))) * np.uint32(multiplier)
        return x ^ (x >> np.uint32(15))

    counter = np.atleast_1d(counter).astype(np.uint32)
    key = mix(counter * np.uint32(0x9E3779B1) + np.uint32(zlib.crc32(f"{seed}/{name}".encode())))
    values = mix(np.arange(count, dtype=np.uint32) + key[:, None]) & np.uint32(0xFFFFFF)
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
    for seed, counter, name in ((0, 0, "a"), (7, 123_456, "layers.0.blocks.1.1"), (2**31 - 1, 2**31 - 1, "pos")):
        np.testing.assert_array_equal(uniform(name, seed, counter, (500,)), reference(name, seed, counter, 500))


def test_same_seed_cell_and_counter_give_the_same_numbers():
    np.testing.assert_array_equal(uniform("x", 3, 17), uniform("x", 3, 17))
    np.testing.assert_array_equal(uniform("x", 3, 17, (10, 100)).reshape(-1), uniform("x", 3, 17, (1000,)))


@pytest.mark.parametrize(
    ("one", "other"),
    [({"name": "layers.0.blocks.0.1"}, {"name": "layers.0.blocks.0.2"}), ({"counter": 4}, {"counter": 5}),
     ({"counter": 4}, {"counter": 4 + 2**16}), ({"seed": 0}, {"seed": 1}), ({"counter": 0}, {"counter": 2**31 - 1})],
)  # fmt: skip
def test_other_seed_cell_or_counter_gives_independent_numbers(one, other):
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
    values = reference("layers.2.blocks.5.1", 0, start + np.arange(20_000), 4)  # (steps, samples)
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
    cell = source().dropout("a", rate).set_train(True)
    x = np.random.default_rng(0).uniform(1, 2, (40, 50, 20)).astype(dtype)
    result = cell(Tensor(x)).asnumpy()
    assert result.dtype == dtype
    dropped = result == 0
    assert_share(dropped.sum(), dropped.size, rate)
    expected = x.astype(np.float64) / (1 - rate)
    np.testing.assert_allclose(result[~dropped], expected[~dropped], rtol=1e-6 if dtype == np.float32 else 2e-3)
    gradient = ms.grad(lambda t: cell(t).sum())(Tensor(x)).asnumpy()  # the same counter: the same mask
    np.testing.assert_allclose(gradient, ~dropped / (1 - rate), rtol=2e-3)


@pytest.mark.parametrize("kind", ["dropout", "drop_path"])
def test_evaluation_is_the_identity(kind):
    cell = getattr(source(), kind)("a", 0.7)
    x = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    np.testing.assert_array_equal(cell.set_train(False)(Tensor(x)).asnumpy(), x)
    assert (cell.set_train(True)(Tensor(x)).asnumpy() != x).any()
    idle = getattr(source(), kind)("a", 0.0).set_train(True)
    np.testing.assert_array_equal(idle(Tensor(x)).asnumpy(), x)


# ---- drop path ----


@pytest.mark.parametrize("spread_first", [True, False])
@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5])
def test_drop_path(rate, spread_first):
    """Whole samples are dropped, the others scaled, so that the mean is kept; on CPU and elsewhere alike."""
    cell = source(counter=5).drop_path("a", rate).set_train(True)
    cell.spread_first = spread_first
    x = np.random.default_rng(0).uniform(1, 2, (4000, 2, 3)).astype(np.float32)
    result = cell(Tensor(x)).asnumpy()
    dropped = (result == 0).reshape(4000, 6)
    assert (dropped.all(1) == dropped.any(1)).all()
    assert_share(dropped[:, 0].sum(), 4000, rate)
    np.testing.assert_allclose(result[~dropped[:, 0]], x[~dropped[:, 0]] / (1 - rate), rtol=1e-6)
    np.testing.assert_array_equal(~dropped[:, 0], uniform("a", 0, 5, (4000,)) >= rate)


def drop_cells(network):
    """All Dropout and DropPath Cells by their number in the network."""
    return [cell for _, cell in network.cells_and_names() if isinstance(cell, (Dropout, DropPath))]


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


def test_published_drop_path_reaches_its_rate():
    network = create_model(case_config("nano_v1", depths=[2, 2, 6, 2], drop_path_rate=0.5))
    last = network.layers[3].blocks[1].drop_path1.rate
    assert (network.layers[0].blocks[0].drop_path1.rate, last) == (0.0, 0.5)


def test_cells_of_a_network_have_keys_of_their_own_and_one_counter():
    network = create_model(case_config("nano_v2", depths=[2, 2, 3, 2]))
    uniforms = [cell.uniform for cell in drop_cells(network)]
    assert len(uniforms) == 1 + 6 * 9
    assert len({cell.key for cell in uniforms}) == len(uniforms)
    assert all(cell.counter is network.random_counter for cell in uniforms)
    assert isinstance(uniforms[0], CounterUniform) and isinstance(network.random_counter, Parameter)
    assert not network.random_counter.requires_grad and network.random_counter.dtype == ms.int32
    other = create_model(case_config("nano_v2", depths=[2, 2, 3, 2], seed=1))
    assert {cell.uniform.key for cell in drop_cells(other)}.isdisjoint({cell.key for cell in uniforms})


def test_network_in_training():
    """Equal counters give equal logits, others do not, and evaluation is another function without randomness."""
    per_stage = {"focal_levels": [2, 2], "focal_windows": [3, 3], "expand_sizes": [1, 1], "focal_stages": [0, 1]}
    config = load_config(
        {"arch": "focal_own", "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4, **per_stage,
         "image_size": 32, "drop_path_rate": 0.5, "drop_rate": 0.1, "attn_drop_rate": 0.1}
    )  # fmt: skip
    network = create_model(config).set_train(True)
    images = Tensor(np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32))

    def logits(counter):
        network.random_counter.set_data(Tensor(counter, ms.int32))
        return network(images).asnumpy()

    first = logits(0)
    assert np.abs(logits(1) - first).max() > 1e-4
    np.testing.assert_array_equal(logits(0), first)
    twin = create_model(config).set_train(True)
    np.testing.assert_array_equal(twin(images).asnumpy(), first)
    network.set_train(False)
    evaluated = logits(0)
    np.testing.assert_array_equal(logits(1), evaluated)
    assert np.abs(evaluated - first).max() > 1e-4


def test_attention_dropout_of_samples_and_heads_is_independent():
    """The mask has the shape of the attention weights: no two samples, heads or queries share it."""
    cell = source().dropout("layers.0.blocks.0.attn", 0.5).set_train(True)
    kept = cell(Tensor(np.ones((4, 6, 16, 50), np.float32))).asnumpy() > 0
    flat = kept.reshape(-1, 50)
    assert len(np.unique(flat, axis=0)) == len(flat)
    for axis in range(4):
        moved = np.moveaxis(kept, axis, 0)
        assert_share((moved[0] == moved[1]).sum(), moved[0].size, 0.5)
