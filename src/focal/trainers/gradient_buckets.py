"""The all-reduces of a training step: which gradients travel together."""

from __future__ import annotations

from collections.abc import Sequence

# On an Ascend, a message under about a megabyte is all latency, and the last one cannot hide behind the backward pass.
# 32 MiB keeps eight cards busy with four to ten messages for the models of this zoo. (By calculation; docs/scaling.md.)
BUCKET_BYTES = 32 * 2**20


def fusion_buckets(sizes: Sequence[int], bucket_bytes: int = BUCKET_BYTES) -> list[int]:
    """Bucket number of each gradient, from 1; gradients of a bucket are sent as one message.

    Counted from the last gradient, which the backward pass finishes first, so that each bucket can leave while earlier
    layers still compute.

    Args:
        sizes: bytes of each gradient, in the order of the network's parameters.
        bucket_bytes: a bucket is closed once it holds at least this much.
    """
    buckets: list[int] = []
    number, held = 1, 0
    for size in reversed(sizes):
        buckets.append(number)
        held += size
        if held >= bucket_bytes:
            number, held = number + 1, 0
    return buckets[::-1]


def gradient_all_reduces(sizes: Sequence[int]) -> tuple:
    """A summing all-reduce per gradient; those with the same `fusion` are merged on Ascend and GPU."""
    from mindspore import ops

    reduces: tuple[ops.AllReduce, ...] = ()
    for index, bucket in enumerate(fusion_buckets(sizes), start=1):
        reduce = ops.AllReduce(ops.ReduceOp.SUM)
        reduce.add_prim_attr("fusion", bucket)
        reduce.add_prim_attr("index", index)
        reduces += (reduce,)
    return reduces
