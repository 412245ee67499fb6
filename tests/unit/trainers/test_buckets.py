"""Which tensors share a bucket, and the way into one and back."""

from __future__ import annotations

import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn
from mindspore import dtype as mstype

from focal.trainers.buckets import Buckets, bucket_members

ALIKE, OTHER = (0.05, 1.0), (0.0, 1.0)
SHAPES = {"a": (2, 3), "b": (4,), "c": (3, 2, 2), "d": (5,), "e": (1,)}


class CopyToParameters(nn.Cell):
    """Compiled, as in the training step."""

    def __init__(self, buckets: Buckets) -> None:
        super().__init__(auto_prefix=False)
        self.buckets = buckets

    def construct(self, vectors: tuple) -> tuple:
        return self.buckets.copy_to_parameters(vectors)


@pytest.fixture
def buckets() -> Buckets:
    rng = np.random.default_rng(0)
    parameters = [
        Parameter(Tensor(rng.standard_normal(shape).astype(np.float32)), name=name) for name, shape in SHAPES.items()
    ]
    return Buckets(parameters, [ALIKE, OTHER, ALIKE, OTHER, OTHER])


def test_buckets_fill_from_the_last_tensor() -> None:
    assert bucket_members([10] * 5, [ALIKE] * 5, bucket_bytes=20) == [[3, 4], [1, 2], [0]]


def test_a_large_tensor_closes_its_bucket() -> None:
    assert bucket_members([1, 100, 1], [ALIKE] * 3, bucket_bytes=20) == [[1, 2], [0]]


def test_a_bucket_holds_tensors_of_one_kind() -> None:
    assert bucket_members([4] * 5, [ALIKE, OTHER, ALIKE, OTHER, ALIKE]) == [[0, 2, 4], [1, 3]]


def test_no_tensors_need_no_buckets() -> None:
    assert bucket_members([], []) == []


def test_every_tensor_of_a_model_is_in_one_bucket_of_bounded_size() -> None:
    sizes = [4 * 96 * 288] * 300
    members = bucket_members(sizes, [ALIKE] * 300, bucket_bytes=2**20)
    assert sorted(number for bucket in members for number in bucket) == list(range(300))
    amounts = [sum(sizes[number] for number in bucket) for bucket in members]
    assert all(2**20 <= amount < 2**20 + max(sizes) for amount in amounts[:-1])


@pytest.mark.parametrize("for_ascend", [False, True])
def test_tensors_go_into_float32_vectors_and_back(buckets: Buckets, for_ascend: bool) -> None:
    buckets.for_ascend = for_ascend
    assert [parameter.name for parameter in buckets.parameters] == ["b", "d", "e", "a", "c"]
    assert buckets.kinds == (OTHER, ALIKE)
    tensors = tuple(Tensor(np.full(p.shape, n, np.float16)) for n, p in enumerate(buckets.parameters))
    vectors = buckets(tensors)
    assert [vector.dtype for vector in vectors] == [mstype.float32] * 2
    assert vectors[0].asnumpy().tolist() == [0] * 4 + [1] * 5 + [2]
    rows = buckets.split(vectors)
    assert [row.asnumpy().tolist() for row in rows] == [t.asnumpy().reshape(-1).tolist() for t in tensors]
    CopyToParameters(buckets)(vectors)
    for parameter, tensor in zip(buckets.parameters, tensors):
        assert parameter.shape == SHAPES[parameter.name] and (parameter.asnumpy() == tensor.asnumpy()).all()


def test_vectors_are_known_to_checkpoints_by_the_names_of_their_tensors(buckets: Buckets) -> None:
    weights = buckets.buffers(buckets.weights("weights"), "copy.")
    values = {name: value for buffer in weights for name, value in buffer.tensors().items()}
    assert values.keys() == {f"copy.{name}" for name in SHAPES}
    assert all((values[f"copy.{p.name}"] == p.asnumpy()).all() for p in buckets.parameters)
    moments = buckets.buffers(buckets.zeros("moments"), "moment1.")
    for buffer in moments:
        buffer.set_tensors({"moment1.d": np.arange(5), "elsewhere": np.ones(3)})
    values = {name: value for buffer in moments for name, value in buffer.tensors().items()}
    assert values["moment1.d"].tolist() == [0, 1, 2, 3, 4]
    assert not any(values[name].any() for name in values if name != "moment1.d")
