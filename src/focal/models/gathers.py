"""The gathers of the attention: rows are taken whole, by tables that are fixed at build time.

Their gradients are gathers as well: MindSpore's own gradient of a gather is a scatter (UnsortedSegmentSum), slow and
not deterministic on Ascend. Here the inverse of each table is made once: for every row the places that took it. The
gradient of a row is the sum over those places.

Shape legend: B batch; T tokens that can be keys (N of the map, then the pooled ones); C channels; h heads; d = C / h;
G groups of Q queries that share K keys (see focal_keys.py); R rows and L places of a gather table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import numpy as np
from mindspore import Tensor, nn, ops

FEW_USES = 8  # up to this many uses are added one by one; more are summed by a matrix product with ones

_GATHER = ops.Gather()


def take_rows(rows: Tensor, table: Tensor) -> Tensor:
    """rows (B, R, d), table (L,) int32 -> (B, L, d): the one place that chooses an operator for gathers."""
    return _GATHER(rows, table, 1)


class SplitHeads(nn.Cell):
    """qkv (B, T, 3 * C) -> queries (B, h * G, Q, d), keys and values (B, h * G, K, d).

    Splitting off the heads and gathering each group's keys are one gather of rows of d numbers: nothing is transposed.
    The order of features is the authors': query, key, value; then head; then d.

    Args:
        queries: (G, Q) token indices.
        keys: (G, K) token indices.
        hidden: (G, K) True for keys that no query of the group may see: they get no gradient.
        tokens: tokens of the map and of each pooled level, T in total.
        heads: h.
    """

    def __init__(
        self, queries: np.ndarray, keys: np.ndarray, hidden: np.ndarray, tokens: Sequence[int], heads: int
    ) -> None:
        super().__init__()
        self.heads, self.groups, self.num_tokens = heads, len(queries), int(sum(tokens))
        head = np.arange(heads)[:, None, None]
        tables, sums = [], []
        for kind, chosen in enumerate((queries, keys, keys)):
            tables.append(index_tensor(chosen[None] * (3 * heads) + kind * heads + head))  # (h, G, Q or K)
            row = chosen[None] * heads + head  # the same row in a tensor that holds this kind alone
            skip = np.broadcast_to(hidden, row.shape).reshape(-1) if kind else None
            sums.append(SumUses(row.reshape(-1), self.num_tokens * heads, skip, [count * heads for count in tokens]))
        self.tables = tuple(tables)
        self.sum_uses = nn.CellList(sums)

    def construct(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, _, width = qkv.shape
        depth = width // (3 * self.heads)
        rows = qkv.reshape((batch, self.num_tokens * 3 * self.heads, depth))  # (B, T * 3 * h, d)
        shape = (batch, self.heads * self.groups, -1, depth)
        queries = take_rows(rows, self.tables[0]).reshape(shape)  # (B, h * G, Q, d)
        keys = take_rows(rows, self.tables[1]).reshape(shape)  # (B, h * G, K, d)
        values = take_rows(rows, self.tables[2]).reshape(shape)  # (B, h * G, K, d)
        return queries, keys, values

    def gradient(self, dqueries: Tensor, dkeys: Tensor, dvalues: Tensor) -> Tensor:
        """Gradients of the outputs of `construct` -> gradient of its input, (B, T, 3 * C)."""
        batch, _, _, depth = dqueries.shape
        parts: tuple[Tensor, ...] = ()
        for kind, taken in enumerate((dqueries, dkeys, dvalues)):
            total = self.sum_uses[kind](taken.reshape((batch, -1, depth)))  # (B, T * h, d)
            parts += (total.reshape((batch, self.num_tokens, self.heads * depth)),)  # (B, T, C)
        return ops.concat(parts, -1)

    def bprop(self, qkv: Tensor, out: tuple[Tensor, ...], dout: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (self.gradient(dout[0], dout[1], dout[2]),)


class GatherTokens(nn.Cell):
    """qkv (B, T, 3 * C) -> queries (B, Q, G * C), keys and values (B, K, G * C): whole tokens, groups side by side.

    Row i holds the i-th query (key, value) of every group: to an operator that takes heads side by side, these are
    G * h heads of d features. In stage order the queries of all groups lie like that already, and so does the result,
    so that neither needs to be reordered: (B, Q, G * C) is (B, N, C).

    Args:
        queries: (G, Q) token indices; stage order, read column by column.
        keys, hidden, tokens: see `SplitHeads`.
    """

    def __init__(self, queries: np.ndarray, keys: np.ndarray, hidden: np.ndarray, tokens: Sequence[int]) -> None:
        super().__init__()
        self.groups, self.num_queries, self.num_keys = len(queries), queries.shape[1], keys.shape[1]
        self.num_tokens, self.num_pooled = int(sum(tokens)), int(sum(tokens)) - queries.size
        assert (queries.T.reshape(-1) == np.arange(queries.size)).all(), "queries are not in stage order"
        # Each token is three rows of the input: query, key and value.
        self.tables = tuple(index_tensor(3 * chosen.T + kind) for kind, chosen in enumerate((queries, keys, keys)))
        self.sum_uses = SumUses(keys.T.reshape(-1), self.num_tokens, hidden.T.reshape(-1), tokens)

    def construct(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, _, width = qkv.shape
        rows = qkv.reshape((batch, self.num_tokens * 3, width // 3))  # (B, T * 3, C)
        queries = take_rows(rows, self.tables[0]).reshape((batch, self.num_queries, -1))  # (B, Q, G * C)
        keys = take_rows(rows, self.tables[1]).reshape((batch, self.num_keys, -1))  # (B, K, G * C)
        values = take_rows(rows, self.tables[2]).reshape((batch, self.num_keys, -1))  # (B, K, G * C)
        return queries, keys, values

    def gradient(self, dqueries: Tensor, dkeys: Tensor, dvalues: Tensor) -> Tensor:
        """Gradients of the outputs of `construct` -> gradient of its input, (B, T, 3 * C)."""
        batch, channels = dqueries.shape[0], dqueries.shape[2] // self.groups
        dqueries = dqueries.reshape((batch, -1, channels))  # (B, N, C)
        if self.num_pooled:  # pooled tokens are never queries
            zeros = ops.zeros((batch, self.num_pooled, channels), dqueries.dtype)
            dqueries = ops.concat((dqueries, zeros), 1)  # (B, T, C)
        parts: tuple[Tensor, ...] = (dqueries,)
        for taken in (dkeys, dvalues):
            parts += (self.sum_uses(taken.reshape((batch, -1, channels))),)  # (B, T, C)
        return ops.concat(parts, -1)

    def bprop(self, qkv: Tensor, out: tuple[Tensor, ...], dout: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (self.gradient(dout[0], dout[1], dout[2]),)


class MergeHeads(nn.Cell):
    """(B, h * G, Q, d) -> (B, N, C): back to one row per token, in stage order."""

    def __init__(self, queries: np.ndarray, heads: int) -> None:
        super().__init__()
        self.heads, self.num_tokens = heads, queries.size
        place_of_token = np.argsort(queries.reshape(-1))  # (N,): where in (G, Q) each token is
        table = place_of_token[:, None] + np.arange(heads)[None, :] * queries.size  # (N, h)
        self.gather_rows = GatherRows(table, heads * queries.size)

    def construct(self, attended: Tensor) -> Tensor:
        batch, _, _, depth = attended.shape
        rows = self.gather_rows(attended.reshape((batch, -1, depth)))  # (B, N * h, d)
        return rows.reshape((batch, self.num_tokens, self.heads * depth))  # (B, N, C)

    def gradient(self, dmerged: Tensor, groups: int) -> Tensor:
        """Gradient of the output of `construct`, (B, N, C) -> gradient of its input, (B, h * G, Q, d)."""
        batch, _, channels = dmerged.shape
        depth = channels // self.heads
        rows = self.gather_rows.sum_uses(dmerged.reshape((batch, -1, depth)))  # (B, h * N, d)
        return rows.reshape((batch, self.heads * groups, -1, depth))


class GatherRows(nn.Cell):
    """rows (B, R, d) -> (B, L, d): `rows[:, table]`, with `SumUses` as its gradient.

    -1 in the table reads an arbitrary row, whose value the caller must not use; it gets no gradient.
    """

    def __init__(self, table: np.ndarray, num_rows: int) -> None:
        super().__init__()
        table = table.reshape(-1)
        self.table = index_tensor(table.clip(0))
        self.sum_uses = SumUses(table, num_rows, skip=table < 0)

    def construct(self, rows: Tensor) -> Tensor:
        return take_rows(rows, self.table)

    def bprop(self, rows: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        return (self.sum_uses(dout),)


class SumUses(nn.Cell):
    """Gradient of a row gather: places (B, L, d) -> (B, R, d), each row the sum over the places that took it.

    Args:
        table, num_rows, skip: see `places_using_rows`.
        parts: sizes of consecutive runs of rows, R in total, that are used about equally often (tokens of the map a few
            times, pooled tokens by nearly every window); each run is summed in its own way.
    """

    def __init__(
        self, table: np.ndarray, num_rows: int, skip: Optional[np.ndarray] = None, parts: Sequence[int] = ()
    ) -> None:
        super().__init__()
        inverse = places_using_rows(table, num_rows, skip)
        self.has_gaps = False
        uses = []
        for part in np.split(inverse, np.cumsum(parts)[:-1].astype(int), axis=1):
            most = int((part < len(table)).sum(0).max(initial=1))
            part = part[:most]
            self.has_gaps |= bool((part == len(table)).any())
            uses.append((most, tuple(map(index_tensor, part if most <= FEW_USES else [part]))))
        self.uses = tuple(uses)

    def construct(self, places: Tensor) -> Tensor:
        batch, _, depth = places.shape
        if self.has_gaps:
            places = ops.concat((places, ops.zeros((batch, 1, depth), places.dtype)), 1)  # (B, L + 1, d)
        sums: tuple[Tensor, ...] = ()
        for most, tables in self.uses:
            total = take_rows(places, tables[0])
            if len(tables) == 1 and most > 1:
                ones = ops.ones((batch, 1, most), places.dtype)
                total = ops.bmm(ones, total.reshape((batch, most, -1))).reshape((batch, -1, depth))
            else:
                for table in tables[1:]:
                    total = total + take_rows(places, table)
            sums += (total,)  # (B, rows of this part, d)
        return sums[0] if len(sums) == 1 else ops.concat(sums, 1)  # (B, R, d)


def places_using_rows(table: np.ndarray, num_rows: int, skip: Optional[np.ndarray] = None) -> np.ndarray:
    """Inverse of a gather table.

    Args:
        table: (L,) row that each place takes.
        num_rows: R, the number of rows.
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
    """An index table as a flat int32 constant of the device."""
    return Tensor(np.ascontiguousarray(table.reshape(-1), dtype=np.int32))
