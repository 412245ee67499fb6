"""Random numbers depend on (seed, epoch, index, stream) and nothing else; batch memory is not used twice at once."""

from __future__ import annotations

import itertools
import pickle

import numpy as np

from focal.data.buffers import BatchBuffers
from focal.data.randomness import BATCH, ORDER, SAMPLE, epoch_order, generator


def test_same_numbers_whatever_was_drawn_before() -> None:
    expected = generator(3, 5, 7, SAMPLE).random(4)
    generator(3, 5, 6, SAMPLE).random(1000)
    assert (generator(3, 5, 7, SAMPLE).random(4) == expected).all()


def test_any_other_argument_gives_other_numbers() -> None:
    seen = {
        generator(seed, epoch, index, stream).random()
        for seed, epoch, index, stream in itertools.product(range(3), range(3), range(10), (ORDER, SAMPLE, BATCH))
    }
    assert len(seen) == 3 * 3 * 10 * 3


def test_numbers_stay_what_they_are() -> None:
    """Known values: what a seed means must not change unnoticed, with this code or with NumPy."""
    assert generator(0, 0, 0, SAMPLE).random(2).tolist() == [0.34218278474233466, 0.5765144536585864]
    assert epoch_order(0, 0, 8).tolist() == [5, 0, 6, 1, 7, 2, 4, 3]


def test_epoch_order_is_a_permutation_that_changes() -> None:
    first, second = epoch_order(0, 0, 1000), epoch_order(0, 1, 1000)
    assert sorted(first) == sorted(second) == list(range(1000))
    # Two random permutations agree in about one place.
    assert (first == second).sum() < 10
    assert (epoch_order(1, 0, 1000) == first).sum() < 10


def test_buffers_are_used_again_only_when_no_view_is_left() -> None:
    buffers = BatchBuffers((4, 2))
    first = buffers.take()
    row = first[1:2]
    address = first.ctypes.data
    del first
    assert buffers.take().ctypes.data != address  # `row` still looks at it
    del row
    second = buffers.take()
    third = buffers.take()
    assert len(buffers) == 2
    assert second.ctypes.data != third.ctypes.data
    assert len(pickle.loads(pickle.dumps(buffers))) == 0


def test_buffers_see_views_held_by_mindspore() -> None:
    import mindspore

    buffers = BatchBuffers((4, 2))
    array = buffers.take()
    array[:] = 1
    tensor = mindspore.Tensor.from_numpy(array)
    del array
    buffers.take()[:] = 2
    assert (tensor.asnumpy() == np.ones((4, 2))).all()
