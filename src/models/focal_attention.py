"""The attention of both versions: every window of queries over a fixed set of keys, all focal levels in one softmax.

A version is a geometry (which keys) plus a bias (tables, or an MLP of coordinates); this file knows neither.

Shape legend: B batch; T tokens that can be keys (N of the map, then the pooled ones); C channels; h heads; d = C / h;
G groups of Q queries that share K keys (see focal_geometry.py).
"""

from __future__ import annotations

from typing import Optional, Sequence

from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from src.models.focal_geometry import KeyTable
from src.models.gather import MergeHeads, SplitHeads, index_tensor
from src.models.layers import AddToSamples, Dropout, dense


class AttentionTables:
    """Device constants and gathers of one `KeyTable`; all blocks of a stage that see the same keys share them.

    Args:
        table: which keys each group of queries sees.
        tokens: tokens of the map and of each pooled level, sum T.
        heads: h.
    """

    def __init__(self, table: KeyTable, tokens: Sequence[int], heads: int) -> None:
        hidden = (table.bias_index == table.hidden_column).all(axis=1)  # (G, K)
        self.split_heads = SplitHeads(table.queries, table.keys, hidden, tokens, heads)
        self.merge_heads = MergeHeads(table.queries, heads)
        self.bias_index = index_tensor(table.bias_index)  # (G * Q * K,)
        self.shape = (len(table.queries), table.queries.shape[1], table.keys.shape[1])  # G, Q, K


class FocalAttention(nn.Cell):
    """Multi-head attention of windows over their focal keys.

    Args:
        dim: C.
        heads: h.
        tables: keys and gathers, see `AttentionTables`.
        position_bias: Cell that gives the bias table (h, D).
        qkv_bias: learnable bias of query, key and value.
        qk_scale: factor on the queries; None: d ** -0.5.
        attn_drop, proj_drop: dropout of attention weights and of the output.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        tables: AttentionTables,
        position_bias: nn.Cell,
        qkv_bias: bool,
        qk_scale: Optional[float],
        attn_drop: Dropout,
        proj_drop: Dropout,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.scale = qk_scale or (dim // heads) ** -0.5
        self.qkv = dense(dim, 3 * dim, has_bias=qkv_bias)
        self.proj = dense(dim, dim)
        self.position_bias = position_bias
        self.attn_drop, self.proj_drop = attn_drop, proj_drop
        self.query_key_product = ops.BatchMatMul(transpose_b=True)
        self.weight_value_product = ops.BatchMatMul()
        self.add_to_samples = AddToSamples()
        self.constant_bias: Optional[Tensor] = None
        self.use_tables(tables)

    def use_tables(self, tables: AttentionTables) -> None:
        """Attend by other tables from now on (before compilation)."""
        self.split_heads, self.merge_heads = tables.split_heads, tables.merge_heads
        self.bias_index, self.table_shape = tables.bias_index, tables.shape

    def gather_bias(self) -> Tensor:
        """The bias of every pair, (1, h * G, Q, K) float32."""
        groups, queries, keys = self.table_shape
        columns = ops.gather(self.position_bias(), self.bias_index, 1)  # (h, G * Q * K)
        return columns.reshape((1, self.heads * groups, queries, keys))

    def construct(self, tokens: Tensor) -> Tensor:
        """tokens (B, T, C), normalised -> (B, N, C)."""
        queries, keys, values = self.split_heads(self.qkv(tokens))  # (B, h * G, Q or K, d)
        logits = self.query_key_product(queries * self.scale, keys)  # (B, h * G, Q, K)
        bias = self.constant_bias if self.constant_bias is not None else self.gather_bias()
        logits = self.add_to_samples(logits.astype(mstype.float32), bias)
        weights = ops.softmax(logits, -1).astype(values.dtype)  # (B, h * G, Q, K)
        attended = self.weight_value_product(self.attn_drop(weights), values)  # (B, h * G, Q, d)
        return self.proj_drop(self.proj(self.merge_heads(attended)))  # (B, N, C)
