"""The memory of a batch is reused only when nothing refers to the batch any more."""

from __future__ import annotations

import pickle

import numpy as np

from focal.data.buffers import BatchBuffers


def test_an_array_is_reused_only_when_no_view_of_it_is_left() -> None:
    buffers = BatchBuffers((4, 2))
    first = buffers.take()
    row = first[1:2]
    address = first.ctypes.data
    del first
    assert buffers.take().ctypes.data != address  # `row` is still a view of it
    del row
    second = buffers.take()
    third = buffers.take()
    assert len(buffers) == 2
    assert second.ctypes.data != third.ctypes.data
    assert len(pickle.loads(pickle.dumps(buffers))) == 0


def test_an_array_that_a_mindspore_tensor_views_is_not_reused() -> None:
    import mindspore

    buffers = BatchBuffers((4, 2))
    array = buffers.take()
    array[:] = 1
    tensor = mindspore.Tensor.from_numpy(array)
    del array
    buffers.take()[:] = 2
    assert (tensor.asnumpy() == np.ones((4, 2))).all()
