"""The attention over given keys by MindSpore's fused operator, which keeps scores and weights on the chip.

`FlashAttentionScore` exists on Atlas A2 and later, for float16 and bfloat16. Whether it is used is decided in
attention_choice.py, which compares it with the products of `WindowedProducts` first.

The groups of a stage fold into its heads: to the operator an image is one sequence of Q queries and K keys with G * h
heads, whose features lie side by side (layout BSH; `GatherTokens`). Queries are scaled before the operator sees them,
because documents disagree whether its own scale applies before the bias is added (MindSpore) or after (CANN). The bias
is its `real_shift`, shared by the samples of a batch, in the type of the queries.

Shape legend: that of gathers.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.ops.auto_generate import FlashAttentionScore, FlashAttentionScoreGrad

if TYPE_CHECKING:
    from focal.models.focal_attention import AttentionTables, WindowedProducts

MOST_HEADS = 256  # of the operator; heads times groups here
HEAD_SIZE_STEP = 16  # the operator takes multiples of it


def flash_operators(heads: int) -> tuple[nn.Cell, nn.Cell]:
    """The operator and its gradient, for `heads` heads side by side and queries that are scaled already."""
    settings = {"head_num": heads, "keep_prob": 1.0, "scale_value": 1.0, "pre_tokens": 2147483647,
                "next_tokens": 2147483647, "inner_precise": 0, "input_layout": "BSH", "sparse_mode": 0}  # fmt: skip
    return FlashAttentionScore(**settings), FlashAttentionScoreGrad(**settings)


class FlashAttention(nn.Cell):
    """softmax(q k^T + bias) v of every group, with a gradient that keeps the input, the output and two sums per query.

    As in `WindowedProducts`, the backward pass gathers keys and values again.

    CANN's public kernels take the address of the bias's gradient and never write to it, and its documents call that
    output unused. Where that is so, products compute the gradient of the bias, and nothing but that.

    Args:
        products: the same attention by products, without dropout.
        tables: which keys the windows see.
        operator_gives_bias_gradient: take the operator's gradient of the bias instead of the products'.
    """

    def __init__(self, products: WindowedProducts, tables: AttentionTables, operator_gives_bias_gradient: bool) -> None:
        super().__init__()
        self.heads, (self.groups, self.num_queries, self.num_keys) = tables.heads, tables.shape
        self.scale = products.scale
        self.products = products
        self.gather_tokens, self.merge_heads = tables.gather_tokens, tables.merge_heads
        self.score, self.score_gradient = flash_operators(self.groups * self.heads)
        self.operator_gives_bias_gradient = operator_gives_bias_gradient
        self.constant_shift: Optional[Tensor] = None

    def fold_bias(self, bias: np.ndarray, dtype: ms.Type) -> None:
        """Make the bias (1, h * G, Q, K) a constant, in the order and type of the operator."""
        by_head = bias.reshape((self.heads, self.groups, self.num_queries, self.num_keys))
        shift = by_head.transpose(1, 0, 2, 3).reshape(1, -1, self.num_queries, self.num_keys)  # (1, G * h, Q, K)
        self.constant_shift = Tensor(shift, dtype)

    def swap_heads_and_groups(self, x: Tensor, outer: int, inner: int) -> Tensor:
        """(1, outer * inner, Q, K) -> (1, inner * outer, Q, K): the order of one of heads and groups to the other."""
        if self.groups > 1 and self.heads > 1:
            x = x.reshape((outer, inner, self.num_queries * self.num_keys)).transpose((1, 0, 2))
        return x.reshape((1, -1, self.num_queries, self.num_keys))

    def shift(self, bias: Tensor, dtype: ms.Type) -> Tensor:
        """bias (1, h * G, Q, K) float32 -> the operator's real_shift, (1, G * h, Q, K)."""
        if self.constant_shift is not None:
            return self.constant_shift
        return self.swap_heads_and_groups(bias, self.heads, self.groups).astype(dtype)

    def construct(self, qkv: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """qkv (B, T, 3 * C), bias (1, h * G, Q, K) float32 -> (B, N, C), and for `bprop` maximum and sum of each row
        of the softmax, (B, G * h, Q, 8) float32."""
        queries, keys, values = self.gather_tokens(qkv)  # (B, Q or K, G * C)
        row_max, row_sum, _, attended = self.score(
            queries * self.scale, keys, values, self.shift(bias, qkv.dtype), None, None, None, None, None, None
        )
        return attended.reshape((qkv.shape[0], self.groups * self.num_queries, -1)), row_max, row_sum

    def bprop(
        self, qkv: Tensor, bias: Tensor, out: tuple[Tensor, ...], dout: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        dattended = dout[0]  # (B, N, C)
        qkv = ops.depend(qkv, dattended)  # otherwise the compiler would keep what the forward pass gathered
        queries, keys, values = self.gather_tokens(qkv)
        dqueries, dkeys, dvalues, dshift = self.score_gradient(
            queries * self.scale, keys, values, dattended.reshape(queries.shape), self.shift(bias, qkv.dtype),
            None, None, None, out[1], out[2], None, out[0].reshape(queries.shape), None, None, None,
        )  # fmt: skip
        if self.operator_gives_bias_gradient:
            dbias = self.swap_heads_and_groups(dshift.astype(ms.float32), self.groups, self.heads)
        else:
            dbias = self.products.bias_gradient(qkv, bias, self.merge_heads.gradient(dattended, self.groups))
        return self.gather_tokens.gradient(dqueries * self.scale, dkeys, dvalues), dbias
