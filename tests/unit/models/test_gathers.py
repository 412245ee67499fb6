"""Gathers against plain indexing and differentiation, forward and gradient, in both modes."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import ops

from focal.models.focal_keys import StageMap, closest_keys, topk_closest_indices, window_keys
from focal.models.gathers import (
    FEW_USES,
    GatherRows,
    GatherTokens,
    MergeHeads,
    SplitHeads,
    SumUses,
    places_using_rows,
)


@pytest.fixture(params=[ms.GRAPH_MODE, ms.PYNATIVE_MODE], ids=["graph", "pynative"])
def any_mode(request, graph_mode_on_cpu):
    ms.set_context(mode=request.param)
    yield
    ms.set_context(mode=ms.GRAPH_MODE)


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def gradient(cell, rows, weights):
    """d sum(cell(rows) * weights) / d rows, where `cell` gives one tensor or several."""

    def loss(x):
        outputs = cell(x)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        total = 0.0
        for output, weight in zip(outputs, weights):
            total = total + (output * weight).sum()
        return total

    return ms.grad(loss)(ms.Tensor(rows)).asnumpy()


def scatter(table, values, num_rows):
    """Sum of `values` (B, L, d) over the places that took each row: what an unbuffered scatter gives."""
    rows = np.zeros((values.shape[0], num_rows, values.shape[2]))
    for place, row in enumerate(table):
        if row >= 0:
            rows[:, row] += values[:, place]
    return rows


rng = np.random.default_rng(0)
TABLES = {
    "permutation": (rng.permutation(12), 12),
    "gaps": (np.array([3, -1, 0, 0, 5, -1, 3, 3]), 7),  # -1: no row; rows 1, 2, 4, 6 are never taken
    "few_uses": (np.repeat(np.arange(5), FEW_USES), 5),
    "many_uses": (rng.permutation(np.repeat(np.arange(5), FEW_USES + 3)), 5),
    "uneven": (np.concatenate([np.zeros(3 * FEW_USES, int), np.arange(9)]), 10),
    "one": (np.array([2]), 4),
    "none": (np.array([-1, -1]), 3),
    "matrix": (rng.integers(0, 6, (4, 5)), 6),
}


@pytest.mark.parametrize("name", TABLES)
def test_the_inverse_of_a_table_lists_every_place_that_takes_a_row(name):
    table, num_rows = TABLES[name]
    table = table.reshape(-1)
    inverse = places_using_rows(table, num_rows, skip=table < 0)
    for row in range(num_rows):
        places = inverse[:, row]
        assert sorted(places[places < len(table)]) == list(np.flatnonzero(table == row))
    uses = np.bincount(table[table >= 0], minlength=1).max()
    assert inverse.shape == (max(uses, 1), num_rows)
    assert inverse.min() >= 0 and inverse.max() <= len(table)


@pytest.mark.parametrize("name", TABLES)
def test_gathered_rows_and_their_gradient_equal_plain_indexing(name, any_mode):
    table, num_rows = TABLES[name]
    cell, rows = GatherRows(table, num_rows), random(2, num_rows, 3)
    table = table.reshape(-1)
    taken = cell(ms.Tensor(rows)).asnumpy()
    assert taken.shape == (2, len(table), 3)
    np.testing.assert_array_equal(taken[:, table >= 0], rows[:, table[table >= 0]])
    weight = random(2, len(table), 3, seed=1)
    np.testing.assert_allclose(
        gradient(cell, rows, [ms.Tensor(weight)]), scatter(table, weight, num_rows), atol=1e-5, rtol=1e-5
    )


def test_a_nan_in_a_place_without_a_row_does_not_flow_back(any_mode):
    """Nothing flows back from places without a row, not even a NaN."""
    table, num_rows = TABLES["gaps"]
    weight = np.ones((1, len(table), 2), np.float32)
    weight[:, table < 0] = np.nan
    result = SumUses(table, num_rows, skip=table < 0)(ms.Tensor(weight)).asnumpy()
    np.testing.assert_array_equal(result[0, :, 0], [2, 0, 0, 3, 0, 1, 0])


@pytest.mark.parametrize("parts", [(), [4, 6], [1, 2, 3, 4]])
def test_summing_in_parts_gives_the_same_sums(parts, any_mode):
    """Rows that are used about equally often are summed together; the result does not depend on the division."""
    table, num_rows = TABLES["uneven"]
    places = random(2, len(table), 3)
    result = SumUses(table, num_rows, parts=parts)(ms.Tensor(places)).asnumpy()
    np.testing.assert_allclose(result, scatter(table, places, num_rows), atol=1e-5)


def split_case(groups, queries, keys, tokens, seed, hidden_fraction=0.3):
    draw = np.random.default_rng(seed)
    table = draw.integers(0, sum(tokens), (groups, keys))
    hidden = draw.random((groups, keys)) < hidden_fraction
    return draw.permutation(tokens[0])[: groups * queries].reshape(groups, queries), table, hidden


@pytest.mark.parametrize(
    ("groups", "queries", "keys", "tokens"),
    [(3, 4, 5, [12]), (3, 4, 6, [12, 3]), (1, 12, 15, [12, 3]), (12, 1, 14, [12, 2, 4])],
)
@pytest.mark.parametrize("heads", [1, 2])
def test_split_heads_gathers_the_queries_keys_and_values_of_each_group(groups, queries, keys, tokens, heads, any_mode):
    """Against reshape, transpose and fancy indexing; hidden keys get no gradient."""
    query_table, key_table, hidden = split_case(groups, queries, keys, tokens, seed=groups)
    cell = SplitHeads(query_table, key_table, hidden, tokens, heads)
    batch, depth, total = 2, 3, sum(tokens)
    qkv = random(batch, total, 3 * heads * depth)
    split = qkv.reshape(batch, total, 3, heads, depth).transpose(2, 0, 3, 1, 4)  # (3, B, h, T, d)
    expected = [split[kind][:, :, index] for kind, index in enumerate((query_table, key_table, key_table))]
    results = cell(ms.Tensor(qkv))
    for result, value in zip(results, expected):  # (B, h, G, Q or K, d)
        np.testing.assert_array_equal(result.asnumpy(), value.reshape(batch, heads * groups, -1, depth))

    weights = [random(*result.shape, seed=kind) for kind, result in enumerate(results)]
    for weight in weights[1:]:  # as behind a mask
        weight.reshape(batch, heads, groups, keys, depth)[:, :, hidden] = 0
    flowing = np.zeros_like(split, dtype=np.float64)
    for kind, (index, weight) in enumerate(zip((query_table, key_table, key_table), weights)):
        weight = weight.reshape(batch, heads, -1, depth)
        for place, token in enumerate(index.reshape(-1)):
            flowing[kind, :, :, token] += weight[:, :, place]
    flowing = flowing.transpose(1, 3, 0, 2, 4).reshape(qkv.shape)
    result = gradient(cell, qkv, [ms.Tensor(weight) for weight in weights])
    np.testing.assert_allclose(result, flowing, atol=1e-5)


def test_hidden_keys_get_no_gradient(any_mode):
    query_table, key_table, hidden = split_case(3, 4, 6, [12, 3], seed=5)
    cell = SplitHeads(query_table, key_table, hidden, [12, 3], 1)
    ones = [ms.Tensor(np.ones((1, 3, count, 1), np.float32)) for count in (4, 6, 6)]
    result = gradient(cell, random(1, 15, 3), ones)
    np.testing.assert_array_equal(result[0, :, 1], np.bincount(key_table[~hidden], minlength=15))


@pytest.mark.parametrize("shape", [(3, 4), (1, 12), (12, 1)])
def test_merge_heads_puts_every_token_back_in_its_place(shape, any_mode):
    queries, heads, depth = np.random.default_rng(2).permutation(12).reshape(shape), 2, 3
    cell, attended = MergeHeads(queries, heads), random(2, heads * shape[0], shape[1], depth)
    expected = np.zeros((2, 12, heads * depth), np.float32)
    for place, token in enumerate(queries.reshape(-1)):
        for head in range(heads):
            value = attended.reshape(2, heads, 12, depth)[:, head, place]
            expected[:, token, head * depth : (head + 1) * depth] = value
    np.testing.assert_array_equal(cell(ms.Tensor(attended)).asnumpy(), expected)
    weight = random(2, 12, heads * depth, seed=3)
    result = gradient(cell, attended, [ms.Tensor(weight)])
    flowing = np.zeros((2, heads, 12, depth), np.float32)
    for place, token in enumerate(queries.reshape(-1)):
        flowing[:, :, place] = weight[:, token].reshape(2, heads, depth)
    np.testing.assert_allclose(result, flowing.reshape(attended.shape), atol=1e-6)


def test_the_gradient_of_a_gather_equals_mindspores_own(any_mode):
    """The same gather without our bprop, differentiated by MindSpore."""
    table, num_rows = TABLES["many_uses"]
    index, rows, weight = ms.Tensor(table.astype(np.int32)), random(2, num_rows, 3), random(2, len(table), 3, seed=4)

    def plain(x):
        return (ops.gather(x, index, 1) * ms.Tensor(weight)).sum()

    np.testing.assert_allclose(
        gradient(GatherRows(table, num_rows), rows, [ms.Tensor(weight)]),
        ms.grad(plain)(ms.Tensor(rows)).asnumpy(), atol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize("version", [1, 2])
def test_gathered_tokens_are_the_heads_that_split_heads_gathers(version, any_mode):
    """The same queries, keys and values, and the same gradient, with heads and groups in another order."""
    heads, depth, batch, stage = 2, 3, 2, StageMap.create(8, 8, 2)
    if version == 1:
        table = window_keys(stage, levels=2, expand_size=1, shift=0, focal_window=3)
    else:
        table, _ = closest_keys(stage, [topk_closest_indices(stage, level, 13) for level in range(2)])
    tokens = [64, 16]
    arguments = (table.queries, table.keys, table.hidden, tokens)
    by_token, by_head = GatherTokens(*arguments), SplitHeads(*arguments, heads)
    assert table.hidden.any() == (version == 1)
    qkv = random(batch, 80, 3 * heads * depth)

    def reordered(x):  # (B, h * G, L, d) -> (B, L, G * h * d)
        return x.reshape(batch, heads, 16, -1, depth).transpose(0, 3, 2, 1, 4).reshape(batch, x.shape[2], -1)

    expected = [reordered(part.asnumpy()) for part in by_head(ms.Tensor(qkv))]
    results = by_token(ms.Tensor(qkv))
    for result, value in zip(results, expected):
        np.testing.assert_array_equal(result.asnumpy(), value)
    np.testing.assert_array_equal(  # queries are the tokens of the map as they lie
        results[0].asnumpy().reshape(batch, 64, -1), qkv[:, :64, : heads * depth]
    )
    weights = [random(batch, heads * 16, count, depth, seed=count) for count in (4, *[table.keys.shape[1]] * 2)]
    np.testing.assert_allclose(
        gradient(by_token, qkv, [ms.Tensor(reordered(weight)) for weight in weights]),
        gradient(by_head, qkv, [ms.Tensor(weight) for weight in weights]),
        atol=1e-5,
    )


def test_the_written_gradient_of_merge_heads_is_that_of_its_forward_pass(any_mode):
    heads, depth, queries = 2, 3, np.arange(12).reshape(4, 3).T
    cell, weight = MergeHeads(queries, heads), random(2, 12, heads * depth)
    expected = gradient(cell, random(2, heads * 3, 4, depth), [ms.Tensor(weight)])
    np.testing.assert_array_equal(cell.gradient(ms.Tensor(weight), 3).asnumpy(), expected)
