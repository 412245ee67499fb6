"""Which keys each window of queries sees: NumPy tables that are made once, when the network is built.

Worked example: an 8 x 8 map in windows of 2 x 2 tokens, and the 4 x 4 map of its pooled windows (focal_levels 2).
Q marks the four queries of the window in the second row and column, which are also keys; o marks its other keys.

                version 1                               version 2
        (expand_size 1, focal_window 3)               (focal_topK 13)
        level 0: map      level 1: pooled     level 0: map      level 1: pooled
        . . . . . . . .   o o o .             . . . . . . . .   o o o o
        . o o o o . . .   o o o .             . . . o . . . .   o o o o
        . o Q Q o . . .   o o o .             . . Q Q o . . .   o o o o
        . o Q Q o . . .   . . . .             . o Q Q o o . .   . o . .
        . o o o o . . .                       . . o o o . . .
        . . . . . . . .                       . . . o . . . .
        . . . . . . . .                       . . . . . . . .
        . . . . . . . .                       . . . . . . . .

Version 1 (the paper's window-wise focal self-attention) sees its window, a ring of `expand_size` tokens around it, and
`focal_window` pooled windows on a side. The ring wraps around the map at its border; pooled windows beyond the border
are masked. Version 2 sees, on each level, the `focal_topK` keys closest to the window's centre, which is the lower
right of its middle tokens when the side is even; among equally distant keys (13 cuts into such a group on the pooled
level) the first in raster order are taken.

Shape legend
    H, W    height and width of a stage's map, in tokens; Hp, Wp: padded to whole windows
    w       window side; nW = (Hp / w) * (Wp / w) windows; N = nW * w * w tokens of the padded map
    P_k     pooled tokens of focal level k >= 1; T = N + sum of P_k: all tokens that can be keys
    G, Q    groups of queries that share their keys, and queries per group: (nW, w * w), or (1, N) if every window sees
            the same keys
    K       keys per group, all focal levels together

A stage keeps its tokens in *stage order* from its first block to its last: by position in the window, then by window,
so that stage position = position * nW + window. Windows then need neither partition nor reverse, and pooling a window
is a sum over the leading axis. Token indices below are stage positions; pooled tokens follow the N tokens of the map.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MASK_VALUE = -100.0  # what the authors add to the logit of a key that must not be seen


# ---- the map and its windows ----


@dataclass(frozen=True)
class StageMap:
    """A stage's map of tokens, cut into windows.

    `window_size` is the configured one, or the map's shorter side if that is not larger: then `is_whole` is True, and
    there are neither surroundings nor shift (focal_transformer.py upstream, FocalTransformerBlock.__init__).
    """

    height: int
    width: int
    window_size: int
    is_whole: bool

    @classmethod
    def create(cls, height: int, width: int, window_size: int) -> StageMap:
        """The map of `height` x `width` tokens, for a configured `window_size`."""
        shorter = min(height, width)
        return cls(height, width, min(window_size, shorter), shorter <= window_size)

    @property
    def windows_hw(self) -> tuple[int, int]:
        """Windows per column and per row; a last partial window is padded at the bottom and on the right."""
        return (-(-self.height // self.window_size), -(-self.width // self.window_size))

    @property
    def padded_hw(self) -> tuple[int, int]:
        """Hp and Wp."""
        rows, columns = self.windows_hw
        return (rows * self.window_size, columns * self.window_size)

    @property
    def num_windows(self) -> int:
        """nW."""
        rows, columns = self.windows_hw
        return rows * columns

    @property
    def num_tokens(self) -> int:
        """N: tokens of the padded map."""
        return self.num_windows * self.window_size**2

    @property
    def is_padded(self) -> bool:
        """Whether windows do not tile the map."""
        return self.padded_hw != (self.height, self.width)

    def positions(self) -> np.ndarray:
        """Stage position of every place of the padded map, (Hp, Wp) int64."""
        w = self.window_size
        rows, columns = np.indices(self.padded_hw)
        window = (rows // w) * self.windows_hw[1] + columns // w
        inside = (rows % w) * w + columns % w
        return inside * self.num_windows + window

    def raster_to_stage(self) -> np.ndarray:
        """(N,): the raster index in the unpadded map of the token at each stage position; -1 for padding."""
        table = np.full(self.num_tokens, -1, dtype=np.int64)
        table[self.stage_to_raster()] = np.arange(self.height * self.width)
        return table

    def stage_to_raster(self) -> np.ndarray:
        """(H * W,): the stage position of each token of the unpadded map, in raster order."""
        return self.positions()[: self.height, : self.width].reshape(-1)

    def shift_table(self, shift: int) -> np.ndarray:
        """(N,): stage position of the token that a roll by (-shift, -shift) brings to each stage position."""
        positions = self.positions()
        table = np.empty(self.num_tokens, dtype=np.int64)
        table[positions.reshape(-1)] = np.roll(positions, (-shift, -shift), (0, 1)).reshape(-1)
        return table

    def query_table(self) -> np.ndarray:
        """(nW, w * w): stage positions of the queries of each window, row by row."""
        return np.arange(self.num_tokens).reshape(-1, self.num_windows).T


def pooled_window(window_size: int, level: int) -> int:
    """Side, in tokens, of what focal level `level` >= 1 pools into one token."""
    return window_size // 2 ** (level - 1)


def pooled_hw(stage: StageMap, level: int) -> tuple[int, int]:
    """Height and width of the pooled map of focal level `level` >= 1."""
    rows, columns = stage.windows_hw
    return (rows * 2 ** (level - 1), columns * 2 ** (level - 1))


def pooling_table(stage: StageMap, level: int) -> np.ndarray:
    """(side * side, P_k): stage positions of the tokens pooled into each pooled token, these in raster order.

    If halved windows do not fill the map (odd sides), it is trimmed evenly, an odd row or column at the end.
    """
    side = pooled_window(stage.window_size, level)
    rows, columns = pooled_hw(stage, level)
    top, left = ((size - count * side) // 2 for size, count in zip(stage.padded_hw, (rows, columns)))
    positions = stage.positions()[top : top + rows * side, left : left + columns * side]
    return positions.reshape(rows, side, columns, side).transpose(1, 3, 0, 2).reshape(side * side, rows * columns)


@dataclass(frozen=True)
class KeyTable:
    """Keys of every window, level after level.

    Attributes:
        queries: (G, Q) stage positions.
        keys: (G, K) indices into the T tokens.
        bias_index: (G, Q, K) column of the bias table (position_bias.py) for each pair of query and key.
        hidden_column: the last column, after those of all biases; pairs that have it must not be seen.
    """

    queries: np.ndarray
    keys: np.ndarray
    bias_index: np.ndarray
    hidden_column: int

    @property
    def hidden(self) -> np.ndarray:
        """(G, K): True for keys that no query of the group may see."""
        return (self.bias_index == self.hidden_column).all(axis=1)

    def share_keys(self) -> KeyTable:
        """The same attention with one group of N queries, in stage order, if all windows see the same keys; else
        unchanged."""
        groups, queries, keys = self.bias_index.shape
        if groups == 1 or not (self.keys == self.keys[:1]).all():
            return self
        order = np.argsort(self.queries.reshape(-1))
        return dataclasses.replace(
            self,
            queries=self.queries.reshape(1, groups * queries)[:, order],
            keys=self.keys[:1],
            bias_index=self.bias_index.reshape(1, groups * queries, keys)[:, order],
        )


# ---- version 1: the window, its surroundings, the pooled windows around it (focal_transformer.py upstream) ----


def window_keys(stage: StageMap, levels: int, expand_size: int, shift: int, focal_window: int) -> KeyTable:
    """Version 1's keys: own window and surroundings (level 0), then the pooled windows of levels 1, 2, ...

    Args:
        levels: number of focal levels that have keys, the finest included.
        expand_size: width of the surroundings in tokens; 0 for none.
        shift: cyclic shift of this block; the shifted window is masked as in Swin.
        focal_window: side of the focal window, in pooled windows; odd.
    """
    w, windows = stage.window_size, stage.num_windows
    own = stage.query_table()
    own_index = np.repeat(relative_position_index(w, w)[None], windows, 0)  # (nW, w * w, w * w)
    if shift:
        own_index = np.where(shift_mask(stage, shift), -1, own_index)
    keys, index = [own], [own_index]
    first_token, first_column = stage.num_tokens, (2 * w - 1) ** 2
    if expand_size:
        around = surrounding_tokens(stage, expand_size)  # (nW, S)
        pairs = np.arange(w * w * around.shape[1]).reshape(1, w * w, -1)
        keys.append(around)
        index.append(np.repeat(first_column + pairs, windows, 0))  # (nW, w * w, S)
        first_column += pairs.size
    for level in range(1, levels):
        pooled, inside = pooled_neighbours(stage, level, focal_window)  # (nW, side ** 2)
        side = focal_window + 2 ** (level - 1) - 1
        offsets = first_column + relative_position_index(w, side)  # (w * w, side ** 2)
        keys.append(first_token + pooled)
        index.append(np.where(inside[:, None, :], offsets[None], -1))  # (nW, w * w, side ** 2)
        first_token += int(np.prod(pooled_hw(stage, level)))
        first_column += (w + side - 1) ** 2
    bias_index = np.concatenate(index, 2)  # (nW, w * w, K)
    bias_index = np.where(bias_index < 0, first_column, bias_index)
    return KeyTable(own, np.concatenate(keys, 1), bias_index, first_column).share_keys()


def relative_position_index(query_side: int, key_side: int) -> np.ndarray:
    """(query_side ** 2, key_side ** 2): index of each pair's offset in a table of (query_side + key_side - 1) ** 2."""
    q, k = np.arange(query_side), np.arange(key_side)
    offset = q[:, None] - k[None, :] + key_side - 1  # (query_side, key_side), from 0
    stride = query_side + key_side - 1
    index = offset[:, None, :, None] * stride + offset[None, :, None, :]  # (qh, qw, kh, kw)
    return index.reshape(query_side**2, key_side**2)


def num_surrounding(window_size: int, expand_size: int) -> int:
    """S: four windows shifted diagonally by `expand_size`, less what the window itself holds."""
    return 4 * (window_size**2 - (window_size - expand_size) ** 2)


def outside_window(window_size: int, expand_size: int) -> np.ndarray:
    """(4, w, w): which places of the four rolled windows (down and right by -e -e, -e +e, +e -e, +e +e) lie outside."""
    outside = np.ones((4, window_size, window_size), dtype=bool)
    near, far = slice(None, -expand_size), slice(expand_size, None)
    for part, (rows, columns) in enumerate(((near, near), (near, far), (far, near), (far, far))):
        outside[part, rows, columns] = False
    return outside


def surrounding_tokens(stage: StageMap, expand_size: int) -> np.ndarray:
    """(nW, S): stage positions of the tokens around each window, in the order of the authors' four rolled maps.

    The maps are rolled, so surroundings wrap around the (padded) map and are not masked.
    """
    w, e = stage.window_size, expand_size
    rows, columns = stage.windows_hw
    parts = []
    for outside, roll in zip(outside_window(w, e), ((-e, -e), (-e, e), (e, -e), (e, e))):
        rolled = np.roll(stage.positions(), roll, (0, 1))
        windows = rolled.reshape(rows, w, columns, w).transpose(0, 2, 1, 3).reshape(-1, w, w)  # (nW, w, w)
        parts.append(windows[:, outside])
    return np.concatenate(parts, axis=1)


def pooled_neighbours(stage: StageMap, level: int, focal_window: int) -> tuple[np.ndarray, np.ndarray]:
    """Pooled tokens around each window: `focal_window + 2 ** (level - 1) - 1` on a side.

    Returns:
        tokens (nW, side ** 2): raster index in the pooled map, clipped to it; inside (nW, side ** 2): False for places
        off the map.
    """
    stride = 2 ** (level - 1)
    side = focal_window + stride - 1
    before = focal_window // 2  # the authors unfold more and drop the first stride - 1 rows and columns
    height, width = pooled_hw(stage, level)
    rows = np.arange(stage.windows_hw[0])[:, None] * stride - before + np.arange(side)  # (nWh, side)
    columns = np.arange(stage.windows_hw[1])[:, None] * stride - before + np.arange(side)  # (nWw, side)
    inside = ((rows >= 0) & (rows < height))[:, None, :, None] & ((columns >= 0) & (columns < width))[None, :, None, :]
    tokens = rows.clip(0, height - 1)[:, None, :, None] * width + columns.clip(0, width - 1)[None, :, None, :]
    return tokens.reshape(stage.num_windows, -1), inside.reshape(stage.num_windows, -1)


def shift_mask(stage: StageMap, shift: int) -> np.ndarray:
    """(nW, w * w, w * w): True where a shifted window joins parts of the map that are not neighbours (as in Swin)."""
    w = stage.window_size
    bands = [np.searchsorted([size - w, size - shift], np.arange(size), side="right") for size in stage.padded_hw]
    label = np.empty(stage.num_tokens, dtype=np.int64)
    label[stage.positions().reshape(-1)] = (bands[0][:, None] * 3 + bands[1][None, :]).reshape(-1)
    window = label[stage.query_table()]  # (nW, w * w)
    return window[:, :, None] != window[:, None, :]


# ---- version 2: the closest tokens of the map, then of the pooled map (focal_transformer_v2.py upstream) ----


def closest_keys(stage: StageMap, indices: Sequence[np.ndarray]) -> tuple[KeyTable, list[np.ndarray]]:
    """Version 2's keys for given indices per level (see `topk_closest_indices`).

    Returns:
        The table, and per level the distinct relative coordinates (D_k, 2), one for each column of the bias table.
    """
    keys, index, distinct = [], [], []
    first_token, first_column = 0, 0
    for level, chosen in enumerate(indices):
        coordinates = relative_coordinates(stage, level, chosen)  # (nW, w * w, K, 2)
        rows, inverse = np.unique(coordinates.reshape(-1, 2), axis=0, return_inverse=True)
        keys.append(stage.stage_to_raster()[chosen] if level == 0 else first_token + chosen)
        index.append(first_column + inverse.reshape(coordinates.shape[:3]))
        distinct.append(rows)
        first_column += len(rows)
        first_token += stage.num_tokens if level == 0 else int(np.prod(pooled_hw(stage, level)))
    table = KeyTable(stage.query_table(), np.concatenate(keys, 1), np.concatenate(index, 2), first_column)
    return table.share_keys(), distinct


def key_grid(stage: StageMap, level: int) -> tuple[int, int]:
    """Height and width of the grid that the closest keys are picked from.

    Levels above 1 have larger pooled maps, but the authors measure every pooled level on the grid of whole windows and
    use the index as it is, so that the first tokens of those maps are picked. Their figures show it, so it is kept.
    """
    return (stage.height, stage.width) if level == 0 else stage.windows_hw


def topk_closest_indices(stage: StageMap, level: int, topk: int) -> np.ndarray:
    """(nW, K) int64: for each window the raster indices of the `topk` closest places of `key_grid`.

    Ties are broken by raster order. The authors' checkpoints hold what torch.topk picked, which differs: a converted
    checkpoint brings its own indices.
    """
    distances = (_offsets(stage, level) ** 2).sum(-1)  # (nW, H * W)
    topk = min(topk, distances.shape[1])
    return np.sort(np.argsort(distances, axis=1, kind="stable")[:, :topk], axis=1)


def are_closest(stage: StageMap, level: int, indices: np.ndarray) -> bool:
    """Whether `indices` (nW, K), all different, are the closest places of `key_grid` for each window of this map.

    Which of several equally distant places are among them does not matter.
    """
    distances = (_offsets(stage, level) ** 2).sum(-1)  # (nW, H * W)
    own = topk_closest_indices(stage, level, indices.shape[1])
    if own.shape != indices.shape or indices.min() < 0 or indices.max() >= distances.shape[1]:
        return False
    wanted, found = (np.sort(np.take_along_axis(distances, chosen, 1), axis=1) for chosen in (own, indices))
    return np.array_equal(wanted, found)


def relative_coordinates(stage: StageMap, level: int, indices: np.ndarray) -> np.ndarray:
    """(nW, w * w, K, 2) float32: query minus key in tokens, the input of version 2's coordinate MLP."""
    offsets = np.take_along_axis(_offsets(stage, level), indices[:, :, None], 1)  # (nW, K, 2)
    if level > 0:
        offsets = offsets * stage.window_size
    window = window_coordinates(stage.window_size).reshape(1, -1, 1, 2)
    return (offsets[:, None] + window).astype(np.float32)


def window_coordinates(window_size: int) -> np.ndarray:
    """(w, w, 2): row and column of each place of a window, measured from its centre."""
    within = np.arange(window_size) - window_size // 2
    return _grid(within, within)


def _offsets(stage: StageMap, level: int) -> np.ndarray:
    """(nW, H * W, 2): window centre minus key, in rows and columns of the level's grid."""
    side = stage.window_size if level == 0 else 1  # of a window, in places of the grid
    centres = _grid(*(np.arange(count) * side + side // 2 for count in stage.windows_hw))
    keys = _grid(*map(np.arange, key_grid(stage, level)))
    return centres.reshape(-1, 1, 2) - keys.reshape(1, -1, 2)


def _grid(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(rows, columns, 2): every pair of a row and a column."""
    return np.stack(np.meshgrid(rows, columns, indexing="ij"), -1)
