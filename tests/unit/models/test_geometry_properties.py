"""The geometry for any map, window and number of levels: indices within their maps, masks right, inverses invert."""

from __future__ import annotations

from typing import Optional

import numpy as np
import pytest

from focal.models.focal_keys import (
    KeyTable,
    StageMap,
    closest_keys,
    pooled_hw,
    pooled_window,
    pooling_table,
    relative_coordinates,
    topk_closest_indices,
    window_keys,
)
from focal.models.gathers import places_using_rows

pytest.importorskip("hypothesis", reason="hypothesis is not installed: pip install -r requirements-dev.txt")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

quick = settings(derandomize=True, deadline=None, max_examples=100, database=None)

MAPS = st.builds(StageMap.create, st.integers(1, 13), st.integers(1, 13), st.integers(1, 8))


@st.composite
def stages_with_levels(draw: st.DrawFn) -> tuple[StageMap, int]:
    """A map and a number of focal levels, as many at most as its windows can be halved for, and one."""
    stage = draw(MAPS)
    return stage, draw(st.integers(1, min(stage.window_size.bit_length() + 1, 4)))


def all_tokens(stage: StageMap, levels: int) -> int:
    """T: tokens of the padded map and of the pooled levels."""
    return stage.num_tokens + sum(int(np.prod(pooled_hw(stage, level))) for level in range(1, levels))


def places(stage: StageMap) -> np.ndarray:
    """(N, 2): row and column, in the padded map, of the token at each stage position."""
    table = np.empty((stage.num_tokens, 2), dtype=np.int64)
    table[stage.positions().reshape(-1)] = np.argwhere(np.ones(stage.padded_hw))
    return table


def check_table(table: KeyTable, stage: StageMap, levels: int) -> None:
    """What holds for the keys of both versions."""
    groups, queries, keys = table.bias_index.shape
    assert table.queries.shape == (groups, queries) and table.keys.shape == (groups, keys)
    assert sorted(table.queries.reshape(-1)) == list(range(stage.num_tokens))  # each token is a query once
    assert table.keys.min() >= 0 and table.keys.max() < all_tokens(stage, levels)
    assert table.bias_index.min() >= 0 and table.bias_index.max() <= table.hidden_column
    assert not table.hidden.all(axis=1).any()  # no query is left without a key
    inverse = places_using_rows(table.keys.reshape(-1), all_tokens(stage, levels), table.hidden.reshape(-1))
    for token, uses in enumerate(inverse.T):
        taken = sorted(uses[uses < table.keys.size])
        assert taken == list(np.flatnonzero((table.keys == token) & ~table.hidden))


@quick
@given(MAPS, st.integers(0, 20))
def test_stage_order_and_raster_order_are_inverses_and_a_shift_back_undoes_a_shift(stage: StageMap, shift: int) -> None:
    size = stage.height * stage.width
    np.testing.assert_array_equal(stage.raster_to_stage()[stage.stage_to_raster()], np.arange(size))
    assert sorted(stage.raster_to_stage()) == [-1] * (stage.num_tokens - size) + list(range(size))
    assert sorted(stage.query_table().reshape(-1)) == list(range(stage.num_tokens))
    there, back = stage.shift_table(shift), stage.shift_table(-shift)
    np.testing.assert_array_equal(there[back], np.arange(stage.num_tokens))


@quick
@given(stages_with_levels())
def test_every_pooled_token_is_made_of_a_square_of_tokens_that_no_other_has(case: tuple[StageMap, int]) -> None:
    stage, levels = case
    for level in range(1, levels):
        table, side = pooling_table(stage, level), pooled_window(stage.window_size, level)
        assert table.shape == (side * side, int(np.prod(pooled_hw(stage, level))))
        assert table.min() >= 0 and table.max() < stage.num_tokens
        assert len(np.unique(table)) == table.size
        spread = places(stage)[table]  # (side * side, P_k, 2)
        assert (np.ptp(spread, axis=0) == side - 1).all()


@quick
@given(stages_with_levels(), st.data())
def test_keys_of_version_1_are_those_in_reach_and_only_what_is_not_is_hidden(
    case: tuple[StageMap, int], data: st.DataObject
) -> None:
    stage, levels = case
    w = stage.window_size
    expand = data.draw(st.integers(0, 0 if stage.is_whole else w), label="expand_size")
    shift = data.draw(st.sampled_from([0] if stage.is_whole else [0, w // 2]), label="shift")
    focal_window = data.draw(st.sampled_from([1, 3, 5, 7]), label="focal_window")
    table = window_keys(stage, levels, expand, shift, focal_window)
    check_table(table, stage, levels)

    groups, queries, _ = table.bias_index.shape
    own = slice(0, w * w)
    if groups == stage.num_windows:
        np.testing.assert_array_equal(table.keys[:, own], table.queries)
    hidden = table.bias_index == table.hidden_column
    if not shift:
        assert not hidden[:, :, : -sum((focal_window + 2 ** (n - 1) - 1) ** 2 for n in range(1, levels)) or None].any()
    else:
        here, there = places(stage)[table.queries], places(stage)[stage.shift_table(shift)[table.queries]]
        moved = (
            there[:, :, None] - there[:, None] != here[:, :, None] - here[:, None]
        )  # neighbours only after the shift
        np.testing.assert_array_equal(hidden[:, :, own], moved.any(axis=3))
    check_pooled_keys(table, stage, levels, focal_window)


def check_pooled_keys(table: KeyTable, stage: StageMap, levels: int, focal_window: int) -> None:
    """Of the places around a window, those on the pooled map are seen, each once, and the others are hidden."""
    end, first = table.keys.shape[1], all_tokens(stage, levels)
    for level in range(levels - 1, 0, -1):
        side, (height, width) = focal_window + 2 ** (level - 1) - 1, pooled_hw(stage, level)
        first -= height * width
        keys = table.keys[:, end - side * side : end] - first
        hidden = table.hidden[:, end - side * side : end]
        assert keys.min() >= 0 and keys.max() < height * width
        for group, (row_of_keys, row_of_hidden) in enumerate(zip(keys, hidden)):
            seen = row_of_keys[~row_of_hidden]
            assert len(set(seen)) == len(seen)
            window = places(stage)[table.queries[group, 0]] // stage.window_size  # its row and column
            top, left = window * 2 ** (level - 1) - focal_window // 2
            expected = [
                row * width + column
                for row in range(max(top, 0), min(top + side, height))
                for column in range(max(left, 0), min(left + side, width))
            ]
            assert sorted(seen) == expected
        end -= side * side


@quick
@given(stages_with_levels(), st.sampled_from([1, 2, 9, 10**6]))
def test_keys_of_version_2_are_the_closest_with_their_coordinates(case: tuple[StageMap, int], topk: int) -> None:
    stage, levels = case
    indices = [topk_closest_indices(stage, level, topk) for level in range(levels)]
    table, distinct = closest_keys(stage, indices)
    check_table(table, stage, levels)
    assert not table.hidden.any()
    on_map = table.keys[table.keys < stage.num_tokens]
    assert (stage.raster_to_stage()[on_map] >= 0).all()  # padding is not a key
    assert all(len(set(row)) == len(row) for row in table.keys)

    coordinates = np.concatenate(
        [relative_coordinates(stage, level, chosen) for level, chosen in enumerate(indices)], 2
    )
    found = np.concatenate(distinct)[table.bias_index]  # (G, Q, K, 2)
    by_position = np.empty((stage.num_tokens, *found.shape[2:]))
    by_position[table.queries.reshape(-1)] = found.reshape(stage.num_tokens, -1, 2)
    expected = np.empty_like(by_position)
    expected[stage.query_table().reshape(-1)] = coordinates.reshape(stage.num_tokens, -1, 2)
    np.testing.assert_array_equal(by_position, expected)
    of_map = indices[0].shape[1]
    offsets = places(stage)[table.queries][:, :, None] - places(stage)[table.keys[:, :of_map]][:, None]
    np.testing.assert_array_equal(found[:, :, :of_map], offsets)


TABLES = st.integers(1, 9).flatmap(
    lambda rows: st.tuples(st.lists(st.integers(-1, rows - 1), min_size=1, max_size=40), st.just(rows))
)


@quick
@given(TABLES, st.randoms(use_true_random=False))
def test_the_inverse_of_any_table_lists_every_place_that_takes_a_row_once(
    case: tuple[list[int], int], generator: Optional[object]
) -> None:
    table, rows = np.array(case[0]), case[1]
    skip = (table < 0) | np.array([generator.random() < 0.3 for _ in table])  # type: ignore[union-attr]
    inverse = places_using_rows(table, rows, skip)
    assert inverse.shape[1] == rows and inverse.min() >= 0 and inverse.max() <= len(table)
    used = inverse[inverse < len(table)]
    assert sorted(used) == list(np.flatnonzero(~skip))
    for row in range(rows):
        assert (table[inverse[:, row][inverse[:, row] < len(table)]] == row).all()
