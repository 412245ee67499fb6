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

Shape legend: B batch; T tokens that can be keys (N of the map, then the pooled ones); C channels; h heads; d = C / h;
G groups of Q queries that share K keys (see focal_keys.py).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Optional

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from focal.models.ascend_forms import Dense, TakeRows
from focal.models.cpu_forms import AddToSamples, CpuForm, SoftmaxGradient
from focal.models.flash_attention import FlashAttention
from focal.models.focal_keys import KeyTable, closest_keys, num_surrounding, topk_closest_indices, window_keys
from focal.models.gathers import GatherTokens, MergeHeads, SplitHeads, index_tensor
from focal.models.layers import Dropout
from focal.models.position_bias import CoordinateBias, TableBias
from focal.models.stages import StageSettings


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
        self.qkv = Dense(channels, 3 * channels, has_bias=stage.model.qkv_bias)
        self.proj = Dense(channels, channels)
        self.position_bias = position_bias
        self.proj_drop = proj_drop
        scale = stage.model.qk_scale or (channels // self.heads) ** -0.5
        self.windowed_products = WindowedProducts(scale, tables.split_heads, attn_drop)
        self.flash: Optional[FlashAttention] = None  # computes the same as windowed_products and merge_heads
        self.constant_bias: Optional[Tensor] = None
        self.take_rows = TakeRows(1)
        self.use_tables(tables)

    def use_tables(self, tables: AttentionTables) -> None:
        """Attend to the keys of other tables from now on (before compilation)."""
        self.tables = tables
        self.windowed_products.split_heads, self.merge_heads = tables.split_heads, tables.merge_heads
        self.bias_index, self.table_shape = tables.bias_index, tables.shape
        if self.flash is not None:
            self.use_flash(self.flash.operator_gives_bias_gradient)

    def make_flash(self, operator_gives_bias_gradient: bool) -> FlashAttention:
        """The same attention by the fused operator; the argument is that of `FlashAttention`."""
        products = WindowedProducts(self.windowed_products.scale, self.tables.split_heads, nn.Identity())
        return FlashAttention(products, self.tables, operator_gives_bias_gradient)

    def use_flash(self, operator_gives_bias_gradient: bool) -> FlashAttention:
        """Attend by the fused operator from now on (before compilation)."""
        flash = self.flash = self.make_flash(operator_gives_bias_gradient)
        return flash

    def gather_bias(self) -> Tensor:
        """The bias of every pair of query and key, (1, h * G, Q, K) float32."""
        groups, queries, keys = self.table_shape
        columns = self.take_rows(self.position_bias(), self.bias_index)  # (h, G * Q * K)
        return columns.reshape((1, self.heads * groups, queries, keys))

    def construct(self, tokens: Tensor) -> Tensor:
        """tokens (B, T, C), normalised -> (B, N, C)."""
        bias = self.constant_bias if self.constant_bias is not None else self.gather_bias()
        qkv = self.qkv(tokens)  # (B, T, 3 * C)
        if self.flash is not None:
            attended = self.flash(qkv, bias)[0]  # (B, N, C)
        else:
            attended = self.merge_heads(self.windowed_products(qkv, bias)[0])  # (B, N, C)
        return self.proj_drop(self.proj(attended))  # (B, N, C)


class WindowedProducts(CpuForm):
    """softmax(q k^T + bias) v of every group, with a gradient that keeps what it needs and nothing else.

    That is the attention weights, and the queries, keys and values as they were gathered: to gather them again would
    save a tenth of the memory that a training step of Focal-fast-S takes, and move 4 % more bytes.

    After products in float16 the softmax reads and writes float16 as well. Its kernels on an Ascend compute in float32
    inside, the logits have been rounded to float16 already, and so will the weights be before the next product; scores
    in float32 between them would be 38 more bytes for each, a sixth of what a training step moves. Bfloat16 has too few
    digits for logits, and the float16 softmax of a CPU rounds inside; there it is float32.
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

    def construct(self, qkv: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        """qkv (B, T, 3 * C), bias (1, h * G, Q, K) float32 -> (B, h * G, Q, d); and for `bprop` the weights of
        `weights`, and queries, keys and values (B, h * G, Q or K, d), which have no gradient as outputs."""
        queries, keys, values = self.split_heads(qkv)
        weights = self.weights(queries, keys, bias)
        attended = self.product(self.attn_drop(weights.astype(values.dtype)), values)
        return attended, weights, queries, keys, values

    def weights(self, queries: Tensor, keys: Tensor, bias: Tensor) -> Tensor:
        """softmax(q k^T + bias), (B, h * G, Q, K) float16 or float32."""
        logits = self.product_transposed(queries * self.scale, keys)  # (B, h * G, Q, K)
        if self.for_cpu or logits.dtype != ms.float16:
            logits = logits.astype(ms.float32)
        return self.softmax(self.add_to_samples(logits, bias.astype(logits.dtype)))

    def logits_gradient(self, values: Tensor, weights: Tensor, dattended: Tensor) -> Tensor:
        """Gradient of the attended values (B, h * G, Q, d) -> of the logits, in shape and type as `weights`."""
        dweights = self.attn_drop(self.product_transposed(dattended, values)).astype(weights.dtype)
        return self.softmax_gradient(dweights, weights)

    def bias_gradient(self, qkv: Tensor, bias: Tensor, dattended: Tensor) -> Tensor:
        """The gradient of the bias alone, (1, h * G, Q, K) float32, from what `construct` was given."""
        queries, keys, values = self.split_heads(qkv)
        return self.add_to_samples.sum_samples(
            self.logits_gradient(values, self.weights(queries, keys, bias), dattended)
        )

    def bprop(
        self, qkv: Tensor, bias: Tensor, out: tuple[Tensor, ...], dout: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        weights, queries, keys, values = out[1], out[2], out[3], out[4]
        dropped = self.attn_drop(weights.astype(values.dtype))
        dvalues = self.transposed_product(dropped, dout[0])  # (B, h * G, K, d)
        dlogits = self.logits_gradient(values, weights, dout[0])
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
        self.heads, self.tokens, self.table = heads, tuple(tokens), table
        self.is_hidden = table.bias_index == table.hidden_column  # (G, Q, K)
        self.split_heads = SplitHeads(table.queries, table.keys, table.hidden, tokens, heads)
        self.merge_heads = MergeHeads(table.queries, heads)
        self.bias_index = index_tensor(table.bias_index)  # (G * Q * K,)
        self.shape = (len(table.queries), table.queries.shape[1], table.keys.shape[1])  # G, Q, K

    @functools.cached_property
    def gather_tokens(self) -> GatherTokens:
        """The gathers of `FlashAttention`."""
        return GatherTokens(self.table.queries, self.table.keys, self.table.hidden, self.tokens)


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
            tables, bias = self._window_tables(block), self._table_bias(block)
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

    def key_table(self, block: int) -> KeyTable:
        """The keys of every window of block number `block`, in a network that has not loaded others."""
        if self.stage.model.focal_version == 1:
            return self._window_tables(block).table
        return self._closest_tables(self.own_indices())[0].table

    def _window_tables(self, block: int) -> AttentionTables:
        stage, expand_size, shift = self.stage, self.stage.expand_size(block), self.stage.shift(block)
        if (expand_size, shift) not in self._of_windows:
            focal_window = stage.model.focal_windows[stage.index]
            keys = window_keys(stage.map, stage.levels, expand_size, shift, focal_window)
            self._of_windows[expand_size, shift] = AttentionTables(keys, stage.tokens, stage.heads)
        return self._of_windows[expand_size, shift]

    def _table_bias(self, block: int) -> TableBias:
        stage, expand_size = self.stage, self.stage.expand_size(block)
        surrounding = num_surrounding(stage.map.window_size, expand_size) if expand_size else 0
        return TableBias(stage.heads, stage.map.window_size, surrounding, stage.focal_sides)

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
