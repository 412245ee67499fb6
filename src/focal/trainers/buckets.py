"""Trained parameters in buckets: what is done to each of them alike is done to a few long vectors instead.

The 548 trained tensors of Focal-fast-S become seven vectors. Gradients are copied into such vectors once; all-reduce,
norm, clipping, optimizer and EMA then take one kernel where they would take hundreds, and the new weights are copied
back into the network's parameters at the end of the step. Checkpoints know nothing of buckets (`FlatBuffer`).
"""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.ops.auto_generate import InplaceCopy

from focal.checkpoint.train_state import FlatBuffer
from focal.models.ascend_forms import AscendForm, has_newer_kernels
from focal.models.cpu_forms import SplitRows

# A bucket is also a message between ranks. On an Ascend, a message under about a megabyte is all latency, and the last
# one cannot hide behind the backward pass. 32 MiB keeps eight cards busy with four to ten messages for the models of
# this zoo. (By calculation; docs/scaling.md.)
BUCKET_BYTES = 32 * 2**20

BUCKETS = "buckets."  # starts the name of each vector

_FOR_EACH = ops.HyperMap()
_INPLACE_COPY, _ASSIGN = InplaceCopy(), ops.Assign()


def bucket_members(
    sizes: Sequence[int], kinds: Sequence[tuple[float, float]], bucket_bytes: int = BUCKET_BYTES
) -> list[list[int]]:
    """Which tensors form each bucket, by number and in order.

    Counted from the last tensor, whose gradient the backward pass finishes first, so that each bucket can leave while
    earlier layers still compute.

    Args:
        sizes: bytes of each tensor, in the order of the network's parameters.
        kinds: weight decay and learning-rate factor of each; a bucket holds tensors of one kind.
        bucket_bytes: a bucket is closed once it holds at least this much.
    """
    closed: list[list[int]] = []
    open_members: dict[tuple[float, float], list[int]] = {}
    for number in reversed(range(len(sizes))):
        members = open_members.setdefault(kinds[number], [])
        members.insert(0, number)
        if sum(sizes[member] for member in members) >= bucket_bytes:
            closed.append(open_members.pop(kinds[number]))
    return closed + list(open_members.values())


class Buckets(nn.Cell, AscendForm):
    """The buckets of the trained parameters; tensors into vectors and back, inside the compiled step.

    Args:
        parameters: to train, float32.
        kinds: weight decay and learning-rate factor of each.

    Attributes:
        parameters: those of the first bucket, then those of the second, and so on.
        kinds: weight decay and learning-rate factor of each bucket.
    """

    def __init__(self, parameters: Sequence[Parameter], kinds: Sequence[tuple[float, float]]) -> None:
        super().__init__(auto_prefix=False)
        members = bucket_members([4 * parameter.size for parameter in parameters], kinds)
        self.parameters = ParameterTuple([parameters[number] for bucket in members for number in bucket])
        self.kinds = tuple(kinds[bucket[0]] for bucket in members)
        ends = np.cumsum([0] + [len(bucket) for bucket in members]).tolist()
        self.spans = tuple(zip(ends, ends[1:]))
        self.sizes = tuple(tuple(parameter.size for parameter in self.parameters[a:b]) for a, b in self.spans)
        self.concat, self.split_rows = ops.Concat(0), SplitRows()
        self.for_ascend = has_newer_kernels()

    def construct(self, tensors: tuple) -> tuple:
        """One tensor per parameter -> one float32 vector per bucket."""
        vectors: tuple[Tensor, ...] = ()
        for start, end in self.spans:
            vectors += (self.concat(_FOR_EACH(_as_float32_row, tensors[start:end])),)
        return vectors

    def split(self, vectors: tuple) -> tuple:
        """One vector per bucket -> one row of numbers per parameter."""
        rows: tuple[Tensor, ...] = ()
        for bucket, sizes in enumerate(self.sizes):
            rows += self.split_rows(vectors[bucket], sizes)
        return rows

    def copy_to_parameters(self, vectors: tuple) -> tuple:
        """Set the parameters to one vector per bucket."""
        # InplaceCopy is the newer kernel of the two. GE does not know it, and on a CPU it refuses parts of a vector in
        # PyNative mode.
        copy = _INPLACE_COPY if self.for_ascend else _ASSIGN
        return _FOR_EACH(ops.partial(_copy, copy), self.parameters, self.split(vectors))

    def zeros(self, name: str) -> ParameterTuple:
        """A vector of zeros per bucket; `name` tells these Parameters from others."""
        return self._vectors(name, [np.zeros(sum(sizes), np.float32) for sizes in self.sizes])

    def weights(self, name: str) -> ParameterTuple:
        """The parameters' present values as a vector per bucket."""
        rows = [parameter.asnumpy().reshape(-1) for parameter in self.parameters]
        return self._vectors(name, [np.concatenate(rows[start:end]) for start, end in self.spans])

    def _vectors(self, name: str, values: Sequence[np.ndarray]) -> ParameterTuple:
        return ParameterTuple(
            [Parameter(Tensor(value), f"{BUCKETS}{name}.{n}", requires_grad=False) for n, value in enumerate(values)]
        )

    def buffers(self, vectors: ParameterTuple, prefix: str = "") -> list[FlatBuffer]:
        """The vectors with what they hold: for each parameter NAME a tensor `prefix`NAME."""
        return [
            FlatBuffer(vector, {f"{prefix}{p.name}": tuple(p.shape) for p in self.parameters[start:end]})
            for vector, (start, end) in zip(vectors, self.spans)
        ]


def _as_float32_row(tensor: Tensor) -> Tensor:
    return tensor.reshape((-1,)).astype(ms.float32)


def _copy(copy: ops.Primitive, parameter: Parameter, row: Tensor) -> Tensor:
    return copy(parameter, row.reshape(parameter.shape))
