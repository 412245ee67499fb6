"""Key tables against a slow, literal derivation on maps of token numbers.

The tables are in stage order; the derivations below move a map of token numbers around as the authors' code moves
features (roll, partition, unfold, trim) and compare token by token. Padding is token -1.
"""

import itertools

import numpy as np
import pytest

from focal.models import focal_keys
from focal.models.focal_keys import (
    StageMap,
    closest_keys,
    key_grid,
    num_surrounding,
    outside_window,
    pooled_hw,
    pooled_neighbours,
    pooled_window,
    pooling_table,
    relative_coordinates,
    relative_position_index,
    shift_mask,
    surrounding_tokens,
    topk_closest_indices,
    window_keys,
)

MAPS = [(8, 8, 4), (12, 8, 4), (10, 7, 4), (14, 14, 7), (16, 16, 7), (3, 3, 7), (4, 9, 7), (5, 5, 1), (6, 10, 5)]
TILED = [case for case in MAPS if case[0] % min(case) == 0 and case[1] % min(case) == 0]


def raster_map(stage):
    """(Hp, Wp): number of each token of the unpadded map; -1 in the padding."""
    padded = np.full(stage.padded_hw, -1)
    padded[: stage.height, : stage.width] = np.arange(stage.height * stage.width).reshape(stage.height, stage.width)
    return padded


def partition(values, w):
    """(Hp, Wp) -> list of windows (w, w), row by row."""
    rows, columns = values.shape[0] // w, values.shape[1] // w
    return [values[r * w : (r + 1) * w, c * w : (c + 1) * w] for r in range(rows) for c in range(columns)]


def tokens_at(stage, positions):
    """Raster numbers of what stands at stage positions."""
    return stage.raster_to_stage()[positions]


@pytest.fixture(params=MAPS, ids=str)
def stage(request):
    return StageMap.create(*request.param)


# ---- the worked example ----


def drawn_keys(table, first, token_of_place):
    """Lines of a map with the queries (Q) and other keys (o) of window 5; `token_of_place`: (H, W) token indices."""
    queries, keys = set(table.queries[5]), set(table.keys[5])
    assert queries <= keys
    lines = []
    for row in first + token_of_place:
        lines.append(" ".join("Q" if token in queries else "o" if token in keys else "." for token in row))
    return lines


def test_the_worked_example_draws_the_keys_that_the_code_picks():
    """The drawing at the head of focal_keys.py, character by character."""
    stage, pooled = StageMap.create(8, 8, 2), np.arange(16).reshape(4, 4)
    ring = window_keys(stage, levels=2, expand_size=1, shift=0, focal_window=3)
    closest, _ = closest_keys(stage, [topk_closest_indices(stage, level, 13) for level in range(2)])
    columns = []
    for table in (ring, closest):
        columns.append(drawn_keys(table, 0, stage.positions()))
        columns.append([*drawn_keys(table, stage.num_tokens, pooled), *[" " * 7] * 4])
    places = (8, 26, 46, 64)
    for parts in zip(*columns):
        line = ""
        for place, part in zip(places, parts):
            line = line.ljust(place) + part
        assert f"\n{line.rstrip()}\n" in focal_keys.__doc__


# ---- windows and stage order ----


def test_windows_cover_the_map_with_less_than_a_window_of_padding(stage):
    shorter = min(stage.height, stage.width)
    assert stage.window_size <= shorter and stage.is_whole == (stage.window_size == shorter)
    rows, columns = stage.windows_hw
    assert (rows - 1) * stage.window_size < stage.height <= rows * stage.window_size
    assert (columns - 1) * stage.window_size < stage.width <= columns * stage.window_size
    assert stage.num_tokens == raster_map(stage).size
    assert stage.is_padded == (raster_map(stage) == -1).any()


def test_a_map_that_is_not_larger_than_a_window_is_one_row_of_windows():
    """`window_size` of the shorter side leaves one row of windows, with neither surroundings nor shift."""
    assert StageMap.create(7, 7, 7).is_whole and StageMap.create(4, 9, 7).is_whole
    assert StageMap.create(4, 9, 7).windows_hw == (1, 3) and not StageMap.create(8, 8, 7).is_whole


def test_stage_order_is_by_position_in_the_window_then_by_window(stage):
    """Stage position j * nW + n: place j of window n."""
    order = stage.raster_to_stage()
    windows = partition(raster_map(stage), stage.window_size)
    for n, window in enumerate(windows):
        for j, token in enumerate(window.reshape(-1)):
            assert order[j * len(windows) + n] == token
    np.testing.assert_array_equal(order[stage.stage_to_raster()], np.arange(stage.height * stage.width))
    queries = stage.query_table()
    np.testing.assert_array_equal(tokens_at(stage, queries), np.stack([window.reshape(-1) for window in windows]))


@pytest.mark.parametrize("shift", [1, 2, 3])
def test_the_shift_table_rolls_the_padded_map(stage, shift):
    """Gathering by the table is rolling the padded map by (-shift, -shift)."""
    rolled = np.roll(raster_map(stage), (-shift, -shift), (0, 1))
    expected = np.stack([window.reshape(-1) for window in partition(rolled, stage.window_size)])  # (nW, w * w)
    gathered = stage.raster_to_stage()[stage.shift_table(shift)]
    np.testing.assert_array_equal(gathered, expected.T.reshape(-1))


# ---- pooling ----


@pytest.mark.parametrize("level", [1, 2, 3])
def test_pooled_tokens_gather_halved_windows_of_the_trimmed_map(stage, level):
    """Windows halved `level - 1` times, of a map trimmed evenly where they do not fill it."""
    side = stage.window_size // 2 ** (level - 1)
    assert pooled_window(stage.window_size, level) == side
    if side == 0:
        pytest.skip("window too small to be halved so often")
    values = raster_map(stage)
    rows, columns = (-(-size // stage.window_size) * 2 ** (level - 1) for size in values.shape)
    assert pooled_hw(stage, level) == (rows, columns)
    for axis, count in ((0, rows), (1, columns)):
        spare = values.shape[axis] - count * side
        assert spare >= 0
        if spare:
            values = np.take(values, range(spare // 2, values.shape[axis] - (spare - spare // 2)), axis)
    expected = np.stack([window.reshape(-1) for window in partition(values, side)], 1)  # (side * side, rows * columns)
    np.testing.assert_array_equal(tokens_at(stage, pooling_table(stage, level)), expected)


# ---- version 1 ----


@pytest.mark.parametrize(("query_side", "key_side"), [(2, 2), (4, 4), (7, 3), (3, 6), (1, 5)])
def test_relative_position_index_is_that_of_the_offset_in_a_square_table(query_side, key_side):
    index = relative_position_index(query_side, key_side)
    span = query_side + key_side - 1
    places = itertools.product(range(query_side), range(query_side))
    for q, (qr, qc) in enumerate(places):
        for k, (kr, kc) in enumerate(itertools.product(range(key_side), range(key_side))):
            assert index[q, k] == (qr - kr + key_side - 1) * span + (qc - kc + key_side - 1)
    assert index.min() == 0 and index.max() == span**2 - 1


@pytest.mark.parametrize("expand", [1, 2, 3, 4])
def test_surroundings_are_four_windows_moved_diagonally(stage, expand):
    """Four windows moved diagonally by `expand` on the torus, each without what lies in the window itself."""
    w = stage.window_size
    if expand > w:
        pytest.skip("refused when the network is built")
    values = raster_map(stage)
    around = tokens_at(stage, surrounding_tokens(stage, expand))
    assert around.shape == (stage.num_windows, num_surrounding(w, expand))
    for n in range(stage.num_windows):
        top, left = (n // stage.windows_hw[1]) * w, (n % stage.windows_hw[1]) * w
        expected = []
        for down, right in ((expand, expand), (expand, -expand), (-expand, expand), (-expand, -expand)):
            for row, column in itertools.product(range(down, w + down), range(right, w + right)):
                if not (0 <= row < w and 0 <= column < w):
                    expected.append(values[(top + row) % values.shape[0], (left + column) % values.shape[1]])
        np.testing.assert_array_equal(around[n], expected)


def test_surroundings_form_a_ring_around_the_window():
    """Far from the border: all tokens within `expand` of the window, those of four arms twice, and no other."""
    stage, expand = StageMap.create(20, 20, 4), 2
    seen = tokens_at(stage, surrounding_tokens(stage, expand))[12]  # the window at rows and columns 8 to 11
    expected = {r * 20 + c for r in range(6, 14) for c in range(6, 14) if not (8 <= r < 12 and 8 <= c < 12)}
    assert set(seen) == expected
    assert outside_window(4, expand).sum() == len(seen) == 48


@pytest.mark.parametrize("focal_window", [1, 3, 5, 7])
@pytest.mark.parametrize("level", [1, 2, 3])
def test_pooled_neighbours_are_those_of_the_authors_unfold(stage, level, focal_window):
    """nn.Unfold with the authors' kernel, stride and padding, less the rows and columns they drop."""
    stride, skipped = 2 ** (level - 1), 2 ** (level - 1) - 1
    kernel = 2 * (focal_window // 2) + stride + skipped
    rows, columns = pooled_hw(stage, level)
    padding = kernel // 2
    padded = np.full((rows + 2 * padding, columns + 2 * padding), -1)
    padded[padding : padding + rows, padding : padding + columns] = np.arange(rows * columns).reshape(rows, columns)
    expected = [
        padded[r * stride + skipped : r * stride + kernel, c * stride + skipped : c * stride + kernel].reshape(-1)
        for r in range((padded.shape[0] - kernel) // stride + 1)
        for c in range((padded.shape[1] - kernel) // stride + 1)
    ]
    tokens, inside = pooled_neighbours(stage, level, focal_window)
    np.testing.assert_array_equal(np.where(inside, tokens, -1), expected)
    assert tokens.min() >= 0 and tokens.max() < rows * columns  # also where hidden, or the gather would fail
    assert inside.any(axis=1).all()


@pytest.mark.parametrize("case", [case for case in MAPS if not StageMap.create(*case).is_whole], ids=str)
@pytest.mark.parametrize("shift", [1, 2])
def test_the_shift_mask_hides_places_from_other_regions_of_the_map(case, shift):
    """After rolling, two places see each other if they stood in one region of Swin's nine before."""
    stage = StageMap.create(*case)
    w = stage.window_size
    if shift >= w:
        pytest.skip("windows are shifted by less than their side")
    label, count = np.zeros(stage.padded_hw, int), 0
    for rows in (slice(0, -w), slice(-w, -shift), slice(-shift, None)):
        for columns in (slice(0, -w), slice(-w, -shift), slice(-shift, None)):
            label[rows, columns], count = count, count + 1
    expected = np.stack([window.reshape(-1)[:, None] != window.reshape(-1)[None] for window in partition(label, w)])
    np.testing.assert_array_equal(shift_mask(stage, shift), expected)


@pytest.mark.parametrize(("levels", "expand", "shift"), [(1, 0, 0), (1, 2, 0), (3, 0, 0), (3, 2, 0), (2, 2, 2)])
def test_window_keys_put_all_levels_side_by_side(levels, expand, shift):
    """All parts side by side: keys, and for each pair the column of the bias table, hidden pairs apart."""
    stage, focal_window = StageMap.create(12, 8, 4), 3
    table = window_keys(stage, levels, expand, shift, focal_window)
    parts = [(stage.query_table(), relative_position_index(4, 4))]
    sizes = [49]
    if expand:
        parts.append((surrounding_tokens(stage, expand), np.arange(16 * 48).reshape(16, 48)))
        sizes.append(16 * 48)
    first = stage.num_tokens
    hidden = [shift_mask(stage, shift) if shift else np.zeros((6, 16, 16), bool)]
    hidden += [np.zeros((6, 16, 48), bool)] if expand else []
    for level in range(1, levels):
        tokens, inside = pooled_neighbours(stage, level, focal_window)
        side = focal_window + 2 ** (level - 1) - 1
        parts.append((first + tokens, relative_position_index(4, side)))
        sizes.append((4 + side - 1) ** 2)
        hidden.append(np.repeat(~inside[:, None], 16, 1))
        first += 6 * 4 ** (level - 1)
    np.testing.assert_array_equal(table.keys, np.concatenate([keys for keys, _ in parts], 1))
    start, columns = 0, []
    for (_, index), size in zip(parts, sizes):
        columns.append(np.repeat((start + index)[None], 6, 0))
        start += size
    assert table.hidden_column == start == sum(sizes)
    np.testing.assert_array_equal(
        table.bias_index, np.where(np.concatenate(hidden, 2), start, np.concatenate(columns, 2))
    )
    assert (table.bias_index == start).any() == bool(levels > 1 or shift)


# ---- version 2 ----


@pytest.mark.parametrize("case", TILED, ids=str)
@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("topk", [1, 5, 16, 10**6])
def test_the_closest_tokens_are_picked_and_ties_go_to_the_first(case, level, topk):
    """No token left out is closer to the window's centre than one picked; ties go to the first in raster order."""
    stage = StageMap.create(*case)
    w, (rows, columns) = stage.window_size, stage.windows_hw
    height, width = (stage.height, stage.width) if level == 0 else (rows, columns)
    assert key_grid(stage, level) == (height, width)
    chosen = topk_closest_indices(stage, level, topk)
    assert chosen.shape == (rows * columns, min(topk, height * width))
    for n, picked in enumerate(chosen):
        centre = np.array([n // columns, n % columns])
        if level == 0:
            centre = centre * w + w // 2
        distance = [(centre[0] - r) ** 2 + (centre[1] - c) ** 2 for r in range(height) for c in range(width)]
        expected = sorted(range(height * width), key=lambda token: (distance[token], token))[: len(picked)]
        np.testing.assert_array_equal(picked, sorted(expected))


@pytest.mark.parametrize("case", TILED, ids=str)
@pytest.mark.parametrize("level", [0, 1, 2])
def test_relative_coordinates_are_query_minus_key_in_tokens(case, level):
    """Query minus key, in tokens of the map; a pooled key stands for the centre of a whole window."""
    stage = StageMap.create(*case)
    w, (_, columns) = stage.window_size, stage.windows_hw
    indices = topk_closest_indices(stage, level, 6)
    coordinates = relative_coordinates(stage, level, indices)
    assert coordinates.dtype == np.float32
    for n, picked in enumerate(indices):
        for j, (row, column) in enumerate(itertools.product(range(w), range(w))):
            for k, key in enumerate(picked):
                window = np.array([n // columns, n % columns])
                query = window * w + [row, column]
                if level == 0:
                    expected = query - [key // stage.width, key % stage.width]
                else:
                    expected = query - (np.array([key // columns, key % columns]) * w + w // 2)
                np.testing.assert_array_equal(coordinates[n, j, k], expected)


@pytest.mark.parametrize("case", TILED, ids=str)
@pytest.mark.parametrize("topk", [5, 10**6])
def test_closest_keys_give_every_query_its_keys_and_coordinates(case, topk):
    stage = StageMap.create(*case)
    w, windows = stage.window_size, stage.num_windows
    levels = 1 if w == 1 else 3
    indices = [topk_closest_indices(stage, level, topk) for level in range(levels)]
    table, distinct = closest_keys(stage, indices)
    # The keys of every query, by the group it is in.
    groups, queries, count = table.bias_index.shape
    assert table.keys.shape == (groups, count) and table.queries.shape == (groups, queries)
    np.testing.assert_array_equal(np.sort(table.queries.reshape(-1)), np.arange(stage.num_tokens))
    all_coordinates = np.concatenate(distinct)
    first, offsets = stage.num_tokens, [0]
    for level in range(1, levels):
        offsets.append(first)
        first += windows * 4 ** (level - 1)
    expected_keys = np.concatenate(
        [stage.stage_to_raster()[chosen] if not level else offsets[level] + chosen
         for level, chosen in enumerate(indices)], 1)  # fmt: skip
    expected_coordinates = np.concatenate(
        [relative_coordinates(stage, level, chosen) for level, chosen in enumerate(indices)], 2
    )
    for group, place in itertools.product(range(groups), range(queries)):
        position = table.queries[group, place]
        inside, window = divmod(position, windows)
        np.testing.assert_array_equal(table.keys[group], expected_keys[window])
        picked = all_coordinates[table.bias_index[group, place]]
        np.testing.assert_array_equal(picked, expected_coordinates[window, inside])
    for rows in distinct:
        assert len(np.unique(rows, axis=0)) == len(rows)
    assert table.hidden_column == len(all_coordinates)
    if topk > stage.num_tokens:  # every window sees the whole map: one group
        assert groups == 1
    elif stage.num_tokens > topk and windows > 1:
        assert groups == windows


def test_padding_is_never_a_key_of_version_2():
    stage = StageMap.create(10, 7, 4)
    for topk in (9, 10**6):
        table, _ = closest_keys(stage, [topk_closest_indices(stage, level, topk) for level in range(2)])
        of_map = table.keys[table.keys < stage.num_tokens]
        assert (tokens_at(stage, of_map) >= 0).all()
    assert table.keys.shape == (1, 70 + 6)
