"""What MindSpore's fused attention is documented to compute, in float32 on any device, in its place.

The documents disagree about its scale: MindSpore's says softmax(scale * q k^T + bias), CANN's
softmax(scale * (q k^T + bias)). The stand-in can mean either.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Optional

import mindspore as ms
from mindspore import Tensor, nn, ops


class Score(nn.Cell):
    """In the place of FlashAttentionScore, layout BSH: the same inputs and outputs."""

    def __init__(self, heads: int, scale: float = 1.0, scale_before_bias: bool = True) -> None:
        super().__init__()
        self.heads, self.scale, self.scale_before_bias = heads, scale, scale_before_bias
        self.product, self.product_transposed = ops.BatchMatMul(), ops.BatchMatMul(transpose_b=True)
        self.transposed_product = ops.BatchMatMul(transpose_a=True)

    def split(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        heads = x.astype(ms.float32).reshape((batch, length, self.heads, width // self.heads))
        return heads.transpose((0, 2, 1, 3))  # (B, N, S, D)

    def merge(self, x: Tensor, like: Tensor) -> Tensor:
        return x.transpose((0, 2, 1, 3)).reshape(like.shape).astype(like.dtype)

    def logits(self, query: Tensor, key: Tensor, shift: Tensor) -> Tensor:
        scores = self.product_transposed(self.split(query), self.split(key))
        if self.scale_before_bias:
            return scores * self.scale + shift.astype(ms.float32)
        return (scores + shift.astype(ms.float32)) * self.scale

    def construct(
        self, query, key, value, shift, drop_mask, padding_mask, attn_mask, prefix, query_lengths, key_lengths
    ) -> tuple[Tensor, ...]:
        logits = self.logits(query, key, shift)
        row_max = logits.max(-1, keepdims=True)
        exponentials = ops.exp(logits - row_max)
        row_sum = exponentials.sum(-1, keepdims=True)
        attended = self.merge(self.product(exponentials / row_sum, self.split(value)), query)
        return ops.tile(row_max, (1, 1, 1, 8)), ops.tile(row_sum, (1, 1, 1, 8)), ops.zeros((1,), ms.float32), attended


class ScoreGradient(Score):
    """In the place of FlashAttentionScoreGrad.

    Args:
        bias_gradient: what the gradient of the bias is multiplied by; 0: as if the operator left zeros there.
    """

    def __init__(self, heads: int, scale: float = 1.0, scale_before_bias: bool = True, bias_gradient: float = 1.0):
        super().__init__(heads, scale, scale_before_bias)
        self.bias_gradient = bias_gradient

    def construct(
        self, query, key, value, dout, shift, drop_mask, padding_mask, attn_mask, row_max, row_sum, softmax_in,
        attended, prefix, query_lengths, key_lengths,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        weights = ops.exp(self.logits(query, key, shift) - row_max[..., :1]) / row_sum[..., :1]
        dout_by_head = self.split(dout)
        dweights = self.product_transposed(dout_by_head, self.split(value))
        sums = (dout_by_head * self.split(attended)).sum(-1, keepdims=True)
        dlogits = weights * (dweights - sums)
        dshift = (dlogits.sum(0, keepdims=True) * self.bias_gradient).astype(shift.dtype)
        dvalue = self.transposed_product(weights, dout_by_head)
        if not self.scale_before_bias:
            dshift = dshift * self.scale
        dlogits = dlogits * self.scale
        dquery = self.product(dlogits, self.split(key))
        dkey = self.transposed_product(dlogits, self.split(query))
        return self.merge(dquery, query), self.merge(dkey, key), self.merge(dvalue, value), dshift


def stand_in(forward: Optional[dict] = None, backward: Optional[dict] = None) -> SimpleNamespace:
    """Makers of both, to replace the operators of flash_attention.py.

    They take the arguments of the operators and read `head_num` and `scale_value`.

    Args:
        forward, backward: settings that replace those of `Score` and `ScoreGradient`.
    """

    def score(**settings) -> nn.Cell:
        return Score(settings["head_num"], **{"scale": settings["scale_value"], **(forward or {})})

    def score_gradient(**settings) -> nn.Cell:
        return ScoreGradient(settings["head_num"], **{"scale": settings["scale_value"], **(backward or {})})

    return SimpleNamespace(FlashAttentionScore=score, FlashAttentionScoreGrad=score_gradient)
