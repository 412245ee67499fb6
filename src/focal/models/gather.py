"""Gathers of whole rows by tables fixed at build time, with gradients that are gathers as well.

MindSpore's own gradient of a gather is a scatter (UnsortedSegmentSum): slow and not deterministic on Ascend. Here the
inverse of each table is made once: for every row, the places that took it. The gradient is the sum over those places.

Shape legend: B batch; R rows, L places of a table; d numbers per row; T tokens that can be keys; C channels;
G groups of Q queries and K keys (see focal_geometry.py).
"""

from __future__ import annotations

from typing import Optional, Sequence

import numpy as np
from mindspore import Tensor, nn, ops

FEW_USES = 8  # up to here uses are added one by one; beyond, summed by a matrix product with ones


def places_using_rows(table: np.ndarray, num_rows: int, skip: Optional[np.ndarray] = None) -> np.ndarray:
    """Inverse of a gather table.

    Args:
        table: (L,) row that each place takes.
        num_rows: R, rows there are.
        skip: (L,) True for places whose gradient is known to be zero (hidden keys): left out.

    Returns:
        (M, R): the places that take each row, M the largest number of them (at least 1); L where a row has fewer.
    """
    places = np.arange(len(table)) if skip is None else np.flatnonzero(~skip)
    order = places[np.argsort(table[places], kind="stable")]
    taken = table[order]
    use = np.arange(len(order)) - np.searchsorted(taken, taken, side="left")
    inverse = np.full((int(use.max(initial=0)) + 1, num_rows), len(table), dtype=np.int64)
    inverse[use, taken] = order
    return inverse


def index_tensor(table: np.ndarray) -> Tensor:
    """An index table as a flat int32 device constant."""
    return Tensor(np.ascontiguousarray(table.reshape(-1), dtype=np.int32))


class SumUses(nn.Cell):
    """Gradient of a row gather: places (B, L, d) -> (B, R, d), each row the sum of the places that took it.

    Args:
        table, num_rows, skip: see `places_using_rows`.
        parts: sizes of consecutive runs of rows, sum R, that are used about equally often (tokens of the map a few
            times, pooled tokens by nearly every window); each run is summed in its own way.
    """

    def __init__(
        self, table: np.ndarray, num_rows: int, skip: Optional[np.ndarray] = None, parts: Optional[Sequence[int]] = None
    ) -> None:
        super().__init__()
        inverse = places_using_rows(table, num_rows, skip)
        self.has_gaps = False
        self.uses = []
        for part in np.split(inverse, np.cumsum(parts)[:-1], axis=1) if parts else [inverse]:
            most = int((part < len(table)).sum(0).max(initial=1))
            part = part[: max(most, 1)]
            self.has_gaps |= bool((part == len(table)).any())
            self.uses.append((len(part), tuple(map(index_tensor, part if len(part) <= FEW_USES else [part]))))
        self.uses = tuple(self.uses)

    def construct(self, places: Tensor) -> Tensor:
        batch, _, depth = places.shape
        if self.has_gaps:
            places = ops.concat((places, ops.zeros((batch, 1, depth), places.dtype)), 1)  # (B, L + 1, d)
        sums = ()
        for most, tables in self.uses:
            total = ops.gather(places, tables[0], 1)
            if len(tables) == 1 and most > 1:
                ones = ops.ones((batch, 1, most), places.dtype)
                total = ops.bmm(ones, total.reshape((batch, most, -1))).reshape((batch, -1, depth))
            else:
                for table in tables[1:]:
                    total = total + ops.gather(places, table, 1)
            sums += (total,)  # (B, rows of this part, d)
        return sums[0] if len(sums) == 1 else ops.concat(sums, 1)  # (B, R, d)


class GatherRows(nn.Cell):
    """rows (B, R, d) -> (B, L, d): `rows[:, table]`, with `SumUses` as its gradient.

    Places where `table` is -1 get some row whose value must not matter; nothing flows back from them.
    """

    def __init__(self, table: np.ndarray, num_rows: int) -> None:
        super().__init__()
        table = table.reshape(-1)
        self.table = index_tensor(table.clip(0))
        self.sum_uses = SumUses(table, num_rows, skip=table < 0)

    def construct(self, rows: Tensor) -> Tensor:
        return ops.gather(rows, self.table, 1)

    def bprop(self, rows: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        return (self.sum_uses(dout),)


class SplitHeads(nn.Cell):
    """qkv (B, T, 3 * C) -> queries (B, heads * G, Q, d), keys and values (B, heads * G, K, d).

    Splitting off the heads and picking each group's keys are one gather of rows of d = C / heads numbers, so nothing is
    transposed. Feature order is the authors': query, key, value; then head; then d.

    Args:
        queries: (G, Q) token indices.
        keys: (G, K) token indices.
        hidden: (G, K) True for keys that no query of the group may see: they get no gradient.
        tokens: tokens of the map and of each pooled level, sum T.
        heads: attention heads.
    """

    def __init__(
        self, queries: np.ndarray, keys: np.ndarray, hidden: np.ndarray, tokens: Sequence[int], heads: int
    ) -> None:
        super().__init__()
        self.heads, self.groups, self.num_tokens = heads, len(queries), int(sum(tokens))
        head = np.arange(heads)[:, None, None]
        tables, sums = [], []
        for kind, chosen in enumerate((queries, keys, keys)):
            tables.append(index_tensor(chosen[None] * (3 * heads) + kind * heads + head))  # (heads, G, Q or K)
            row = chosen[None] * heads + head  # the same row in a tensor that holds this kind alone
            skip = np.broadcast_to(hidden, row.shape).reshape(-1) if kind else None
            sums.append(SumUses(row.reshape(-1), self.num_tokens * heads, skip, [count * heads for count in tokens]))
        self.tables = tuple(tables)
        self.sum_uses = nn.CellList(sums)

    def construct(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, _, width = qkv.shape
        depth = width // (3 * self.heads)
        rows = qkv.reshape((batch, self.num_tokens * 3 * self.heads, depth))
        shape = (batch, self.heads * self.groups, -1, depth)
        queries = ops.gather(rows, self.tables[0], 1).reshape(shape)  # (B, heads * G, Q, d)
        keys = ops.gather(rows, self.tables[1], 1).reshape(shape)  # (B, heads * G, K, d)
        values = ops.gather(rows, self.tables[2], 1).reshape(shape)  # (B, heads * G, K, d)
        return queries, keys, values

    def gradient(self, dqueries: Tensor, dkeys: Tensor, dvalues: Tensor) -> Tensor:
        """Gradients of what `construct` returns -> gradient of its input, (B, T, 3 * C)."""
        batch, _, _, depth = dqueries.shape
        parts = ()
        for kind, taken in enumerate((dqueries, dkeys, dvalues)):
            total = self.sum_uses[kind](taken.reshape((batch, -1, depth)))  # (B, T * heads, d)
            parts += (total.reshape((batch, self.num_tokens, self.heads * depth)),)
        return ops.concat(parts, -1)

    def bprop(self, qkv: Tensor, out: tuple[Tensor, ...], dout: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (self.gradient(dout[0], dout[1], dout[2]),)


class MergeHeads(nn.Cell):
    """(B, heads * G, Q, d) -> (B, N, C): back to one row per token, in stage order."""

    def __init__(self, queries: np.ndarray, heads: int) -> None:
        super().__init__()
        self.heads, self.num_tokens = heads, queries.size
        place_of_token = np.argsort(queries.reshape(-1))  # (N,): where in (G, Q) each token is
        table = place_of_token[:, None] + np.arange(heads)[None, :] * queries.size  # (N, heads)
        self.gather_rows = GatherRows(table, heads * queries.size)

    def construct(self, attended: Tensor) -> Tensor:
        batch, _, _, depth = attended.shape
        rows = self.gather_rows(attended.reshape((batch, -1, depth)))  # (B, N * heads, d)
        return rows.reshape((batch, self.num_tokens, self.heads * depth))
