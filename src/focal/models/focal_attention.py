"""The attention of both versions: every window of queries over a fixed set of keys, all focal levels in one softmax.

A version is a geometry (which keys) plus a bias (tables, or an MLP of coordinates); this file knows neither.

Shape legend: B batch; T tokens that can be keys (N of the map, then the pooled ones); C channels; h heads; d = C / h;
G groups of Q queries that share K keys (see focal_geometry.py).
"""

from __future__ import annotations

from typing import Optional, Sequence

from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from focal.models.focal_keys import KeyTable
from focal.models.gather import MergeHeads, SplitHeads, index_tensor
from focal.models.layers import AddToSamples, Dropout, SoftmaxGradient, dense


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


class WindowedProducts(nn.Cell):
    """softmax(q k^T + bias) v of every group. Its own gradient keeps little: the input and the attention weights.

    Queries, keys and values of the groups together are several times as large as the tokens they are picked from, and
    picking them again in the backward pass takes no time that could be measured.
    """

    def __init__(self, scale: float, attn_drop: Dropout) -> None:
        super().__init__()
        self.scale = scale
        self.attn_drop = attn_drop
        self.product = ops.BatchMatMul()
        self.product_transposed = ops.BatchMatMul(transpose_b=True)
        self.transposed_product = ops.BatchMatMul(transpose_a=True)
        self.softmax = ops.Softmax(-1)
        self.add_to_samples = AddToSamples()
        self.softmax_gradient = SoftmaxGradient()
        self.split_heads: Optional[SplitHeads] = None

    def construct(self, qkv: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """qkv (B, T, 3 * C), bias (1, h * G, Q, K) float32 -> (B, h * G, Q, d), and the weights, float32."""
        queries, keys, values = self.split_heads(qkv)  # (B, h * G, Q or K, d)
        logits = self.product_transposed(queries * self.scale, keys)  # (B, h * G, Q, K)
        weights = self.softmax(self.add_to_samples(logits.astype(mstype.float32), bias))
        return self.product(self.attn_drop(weights.astype(values.dtype)), values), weights

    def bprop(self, qkv: Tensor, bias: Tensor, out: tuple, dout: tuple) -> tuple[Tensor, Tensor]:
        weights, dout = out[1], dout[0]  # nobody differentiates the weights
        # Without the dependence the compiler would keep what it picked on the way forward.
        queries, keys, values = self.split_heads(ops.depend(qkv, dout))
        dropped = self.attn_drop(weights.astype(values.dtype))
        dvalues = self.transposed_product(dropped, dout)
        dweights = self.attn_drop(self.product_transposed(dout, values)).astype(mstype.float32)
        dlogits = self.softmax_gradient(dweights, weights)
        dbias = self.add_to_samples.sum_samples(dlogits)
        dlogits = dlogits.astype(values.dtype)
        dqueries = self.product(dlogits, keys) * self.scale
        dkeys = self.transposed_product(dlogits, queries * self.scale)
        return self.split_heads.gradient(dqueries, dkeys, dvalues), dbias


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
        self.qkv = dense(dim, 3 * dim, has_bias=qkv_bias)
        self.proj = dense(dim, dim)
        self.position_bias = position_bias
        self.proj_drop = proj_drop
        self.windowed_products = WindowedProducts(qk_scale or (dim // heads) ** -0.5, attn_drop)
        self.constant_bias: Optional[Tensor] = None
        self.use_tables(tables)

    def use_tables(self, tables: AttentionTables) -> None:
        """Attend by other tables from now on (before compilation)."""
        self.windowed_products.split_heads, self.merge_heads = tables.split_heads, tables.merge_heads
        self.bias_index, self.table_shape = tables.bias_index, tables.shape

    def gather_bias(self) -> Tensor:
        """The bias of every pair, (1, h * G, Q, K) float32."""
        groups, queries, keys = self.table_shape
        columns = ops.gather(self.position_bias(), self.bias_index, 1)  # (h, G * Q * K)
        return columns.reshape((1, self.heads * groups, queries, keys))

    def construct(self, tokens: Tensor) -> Tensor:
        """tokens (B, T, C), normalised -> (B, N, C)."""
        bias = self.constant_bias if self.constant_bias is not None else self.gather_bias()
        attended, _ = self.windowed_products(self.qkv(tokens), bias)  # (B, h * G, Q, d)
        return self.proj_drop(self.proj(self.merge_heads(attended)))  # (B, N, C)
