"""The attention of both versions: each window of queries over its keys, all focal levels in one softmax.

Worked example, that of focal_keys.py: the 64 tokens of an 8 x 8 map in 16 windows of 2 x 2, numbered in stage order,
and the 16 tokens pooled from these windows, numbered after them. T = 80 tokens can be keys.

         0 16  1 17  2 18  3 19     64 65 66 67     window 5 holds the queries 5, 21, 37 and 53: G = 16 groups, Q = 4
        32 48 33 49 34 50 35 51     68 69 70 71
         4 20  5 21  6 22  7 23     72 73 74 75     its keys in version 1, K = 25:
        36 52 37 53 38 54 39 55     76 77 78 79         5 21 37 53
         8 24  9 25 10 26 11 27                         38 25 10 52 24 9 49 34 6 48 33 20
        40 56 41 57 42 58 43 59                         64 65 66 68 69 70 72 73 74
        12 28 13 29 14 30 15 31                     and in version 2, K = 26:
        44 60 45 61 46 62 47 63                         49 5 21 6 52 37 53 38 54 9 25 10 57
                                                        64 65 66 67 68 69 70 71 72 73 74 75 77

    tokens (B, 80, C) -> qkv (B, 80, 3 * C) -> queries (B, h * 16, 4, d), keys and values (B, h * 16, 25 or 26, d)
        -> softmax(q k^T + bias) v (B, h * 16, 4, d) -> output (B, 64, C)

Gathers take whole rows by tables that are fixed at build time, and their gradients are gathers as well: MindSpore's own
gradient of a gather is a scatter (UnsortedSegmentSum), slow and not deterministic on Ascend. Here the inverse of each
table is made once: for every row the places that took it. The gradient of a row is the sum over those places.

Shape legend: B batch; T tokens that can be keys (N of the map, then the pooled ones); C channels; h heads; d = C / h;
G groups of Q queries that share K keys (see focal_keys.py); R rows and L places of a gather table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from focal.models.ascend_forms import TakeRows
from focal.models.cpu_forms import AddToSamples, SoftmaxGradient
from focal.models.focal_keys import KeyTable, closest_keys, num_surrounding, topk_closest_indices, window_keys
from focal.models.layers import Dropout, dense
from focal.models.position_bias import CoordinateBias, TableBias
from focal.models.stages import StageSettings

FEW_USES = 8  # up to this many uses are added one by one; more are summed by a matrix product with ones


# ---- attention ----


class FocalAttention(nn.Cell):
    """Multi-head attention of windows over their focal keys.

    Args:
        stage: settings of the stage.
        tables: which keys the windows see.
        position_bias: Cell that gives the bias table (h, D).
        attn_drop, proj_drop: dropout of the attention weights and of the output.
        key_indices: version 2: the keys of each level, parameters without gradient; checkpoints hold them.
    """

    def __init__(
        self,
        stage: StageSettings,
        tables: AttentionTables,
        position_bias: nn.Cell,
        attn_drop: Dropout,
        proj_drop: Dropout,
        key_indices: Sequence[Parameter] = (),
    ) -> None:
        super().__init__()
        channels, self.heads = stage.channels, stage.heads
        self.key_indices = ParameterTuple(key_indices)
        self.qkv = dense(channels, 3 * channels, has_bias=stage.model.qkv_bias)
        self.proj = dense(channels, channels)
        self.position_bias = position_bias
        self.proj_drop = proj_drop
        scale = stage.model.qk_scale or (channels // self.heads) ** -0.5
        self.windowed_products = WindowedProducts(scale, tables.split_heads, attn_drop)
        self.constant_bias: Optional[Tensor] = None
        self.take_rows = TakeRows(1)
        self.use_tables(tables)

    def use_tables(self, tables: AttentionTables) -> None:
        """Attend to the keys of other tables from now on (before compilation)."""
        self.windowed_products.split_heads, self.merge_heads = tables.split_heads, tables.merge_heads
        self.bias_index, self.table_shape = tables.bias_index, tables.shape

    def gather_bias(self) -> Tensor:
        """The bias of every pair of query and key, (1, h * G, Q, K) float32."""
        groups, queries, keys = self.table_shape
        columns = self.take_rows(self.position_bias(), self.bias_index)  # (h, G * Q * K)
        return columns.reshape((1, self.heads * groups, queries, keys))

    def construct(self, tokens: Tensor) -> Tensor:
        """tokens (B, T, C), normalised -> (B, N, C)."""
        bias = self.constant_bias if self.constant_bias is not None else self.gather_bias()
        attended, _ = self.windowed_products(self.qkv(tokens), bias)  # (B, h * G, Q, d)
        return self.proj_drop(self.proj(self.merge_heads(attended)))  # (B, N, C)


class WindowedProducts(nn.Cell):
    """softmax(q k^T + bias) v of every group, with a gradient that keeps little: the input and the attention weights.

    Queries, keys and values of all groups are several times as large as the tokens they are gathered from, so the
    backward pass gathers them again, which takes no measurable time.
    """

    def __init__(self, scale: float, split_heads: SplitHeads, attn_drop: Dropout) -> None:
        super().__init__()
        self.scale = scale
        self.attn_drop = attn_drop
        self.product = ops.BatchMatMul()
        self.product_transposed = ops.BatchMatMul(transpose_b=True)
        self.transposed_product = ops.BatchMatMul(transpose_a=True)
        self.softmax = ops.Softmax(-1)
        self.add_to_samples = AddToSamples()
        self.softmax_gradient = SoftmaxGradient()
        self.split_heads = split_heads

    def construct(self, qkv: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """qkv (B, T, 3 * C), bias (1, h * G, Q, K) float32 -> (B, h * G, Q, d), and the weights, float32."""
        queries, keys, values = self.split_heads(qkv)  # (B, h * G, Q or K, d)
        logits = self.product_transposed(queries * self.scale, keys)  # (B, h * G, Q, K)
        weights = self.softmax(self.add_to_samples(logits.astype(ms.float32), bias))
        return self.product(self.attn_drop(weights.astype(values.dtype)), values), weights

    def bprop(
        self, qkv: Tensor, bias: Tensor, out: tuple[Tensor, Tensor], dout: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        weights, dout = out[1], dout[0]  # the weights are an output for this function only; they have no gradient
        # Without the dependence the compiler would keep what the forward pass gathered.
        queries, keys, values = self.split_heads(ops.depend(qkv, dout))
        dropped = self.attn_drop(weights.astype(values.dtype))
        dvalues = self.transposed_product(dropped, dout)  # (B, h * G, K, d)
        dweights = self.attn_drop(self.product_transposed(dout, values)).astype(ms.float32)  # (B, h * G, Q, K)
        dlogits = self.softmax_gradient(dweights, weights)
        dbias = self.add_to_samples.sum_samples(dlogits)  # (1, h * G, Q, K)
        dlogits = dlogits.astype(values.dtype)
        dqueries = self.product(dlogits, keys) * self.scale  # (B, h * G, Q, d)
        dkeys = self.transposed_product(dlogits, queries * self.scale)  # (B, h * G, K, d)
        return self.split_heads.gradient(dqueries, dkeys, dvalues), dbias


class AttentionTables:
    """A `KeyTable` as gathers and constants of the device; blocks of a stage that see the same keys share it.

    Args:
        table: which keys each group of queries sees.
        tokens: tokens of the map and of each pooled level, T in total.
        heads: h.
    """

    def __init__(self, table: KeyTable, tokens: Sequence[int], heads: int) -> None:
        self.split_heads = SplitHeads(table.queries, table.keys, table.hidden, tokens, heads)
        self.merge_heads = MergeHeads(table.queries, heads)
        self.bias_index = index_tensor(table.bias_index)  # (G * Q * K,)
        self.shape = (len(table.queries), table.queries.shape[1], table.keys.shape[1])  # G, Q, K


class AttentionBuilder:
    """Builds the attention of each block of a stage; blocks that see the same keys share their tables.

    The network's versions differ here only: in the choice of keys (focal_keys.py) and of bias (position_bias.py).
    """

    def __init__(self, stage: StageSettings) -> None:
        self.stage = stage
        self._of_windows: dict[tuple[int, int], AttentionTables] = {}  # by expand_size and shift
        self._of_indices: dict[tuple[bytes, ...], tuple[AttentionTables, list[np.ndarray]]] = {}

    def build(self, block: int, attn_drop: Dropout, proj_drop: Dropout) -> FocalAttention:
        """Attention of block number `block` of the stage."""
        stage = self.stage
        indices: list[np.ndarray] = []
        if stage.model.focal_version == 1:
            tables, bias = self._window_attention(block)
        else:
            indices = self.own_indices()
            tables, coordinates = self._closest_tables(indices)
            bias = CoordinateBias(stage.heads, stage.channels // stage.heads, coordinates)
        parameters = [
            Parameter(_key_index_tensor(chosen), name=f"topk_cloest_indice_{level}", requires_grad=False)
            for level, chosen in enumerate(indices)
        ]
        return FocalAttention(stage, tables, bias, attn_drop, proj_drop, parameters)

    def use_indices(self, attention: FocalAttention, indices: Sequence[np.ndarray]) -> None:
        """Version 2: let `attention` attend to given key indices per level, (nW, K) each (before compilation)."""
        for parameter, level in zip(attention.key_indices, indices):
            parameter.set_data(_key_index_tensor(level))
        tables, coordinates = self._closest_tables(indices)
        attention.use_tables(tables)
        assert isinstance(attention.position_bias, CoordinateBias)
        attention.position_bias.use_coordinates(coordinates)

    def own_indices(self) -> list[np.ndarray]:
        """Version 2: the key indices of a network that has not loaded others, per level."""
        stage = self.stage
        return [topk_closest_indices(stage.map, level, stage.model.focal_topK) for level in range(stage.levels)]

    def _window_attention(self, block: int) -> tuple[AttentionTables, TableBias]:
        stage, expand_size, shift = self.stage, self.stage.expand_size(block), self.stage.shift(block)
        if (expand_size, shift) not in self._of_windows:
            focal_window = stage.model.focal_windows[stage.index]
            keys = window_keys(stage.map, stage.levels, expand_size, shift, focal_window)
            self._of_windows[expand_size, shift] = AttentionTables(keys, stage.tokens, stage.heads)
        surrounding = num_surrounding(stage.map.window_size, expand_size) if expand_size else 0
        bias = TableBias(stage.heads, stage.map.window_size, surrounding, stage.focal_sides)
        return self._of_windows[expand_size, shift], bias

    def _closest_tables(self, indices: Sequence[np.ndarray]) -> tuple[AttentionTables, list[np.ndarray]]:
        """Tables and distinct coordinates for key indices, whose order within a window does not matter."""
        indices = [np.sort(level.astype(np.int64), axis=1) for level in indices]
        key = tuple(level.tobytes() for level in indices)
        if key not in self._of_indices:
            keys, coordinates = closest_keys(self.stage.map, indices)
            tables = AttentionTables(keys, self.stage.tokens, self.stage.heads)
            self._of_indices[key] = (tables, coordinates)
        return self._of_indices[key]


def _key_index_tensor(indices: np.ndarray) -> Tensor:
    return Tensor(np.asarray(indices, dtype=np.int32), ms.int32)


# ---- gathers ----


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
        self.take_rows = TakeRows(1)
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
        queries = self.take_rows(rows, self.tables[0]).reshape(shape)  # (B, h * G, Q, d)
        keys = self.take_rows(rows, self.tables[1]).reshape(shape)  # (B, h * G, K, d)
        values = self.take_rows(rows, self.tables[2]).reshape(shape)  # (B, h * G, K, d)
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


class GatherRows(nn.Cell):
    """rows (B, R, d) -> (B, L, d): `rows[:, table]`, with `SumUses` as its gradient.

    -1 in the table reads an arbitrary row, whose value the caller must not use; it gets no gradient.
    """

    def __init__(self, table: np.ndarray, num_rows: int) -> None:
        super().__init__()
        table = table.reshape(-1)
        self.take_rows = TakeRows(1)
        self.table = index_tensor(table.clip(0))
        self.sum_uses = SumUses(table, num_rows, skip=table < 0)

    def construct(self, rows: Tensor) -> Tensor:
        return self.take_rows(rows, self.table)

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
        self.take_rows = TakeRows(1)
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
            total = self.take_rows(places, tables[0])
            if len(tables) == 1 and most > 1:
                ones = ops.ones((batch, 1, most), places.dtype)
                total = ops.bmm(ones, total.reshape((batch, most, -1))).reshape((batch, -1, depth))
            else:
                for table in tables[1:]:
                    total = total + self.take_rows(places, table)
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
