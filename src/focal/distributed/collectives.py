"""Collective operations outside compiled graphs.

Everything travels as a float32 sum, the one collective that works on every device MindSpore supports. Each call that
waits for other ranks ends the process with a message when it has waited too long.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # importing this module does not import the framework
    from mindspore import Parameter

logger = logging.getLogger("focal")

TIMEOUT_EXIT_CODE = 75  # EX_TEMPFAIL: the job can be started again
COLLECTIVE_TIMEOUT = 600.0  # seconds; one rank may still be compiling while another waits
_CHUNK = 1 << 24  # float32 numbers per collective when broadcasting: 64 MiB

_rank, _world_size = 0, 1  # of the process group that this process has joined


def set_group(rank: int, world_size: int) -> None:
    """Say which process group this process has joined; (0, 1) if none."""
    global _rank, _world_size
    _rank, _world_size = rank, world_size


def group_size() -> int:
    """Ranks of the process group that this process has joined."""
    return _world_size


@contextlib.contextmanager
def waiting(what: str, timeout: float) -> Iterator[None]:
    """Limit a call that waits for other ranks: after `timeout` seconds this process ends with a message.

    The call waits inside the framework, where Python can neither interrupt it nor raise; hence the hard exit. The
    launcher then ends the other workers.
    """

    message = f"rank {_rank} waited {timeout:.0f} s for {what} and gives up; see the other ranks' logs"
    timer = threading.Timer(timeout, give_up, (message,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def give_up(message: str) -> None:
    """End this process at once, with a message in its log and an exit code that says it can be started again."""
    logger.error("%s", message)
    logging.shutdown()
    os._exit(TIMEOUT_EXIT_CODE)


def all_reduce_sum(values: np.ndarray, timeout: float = COLLECTIVE_TIMEOUT) -> np.ndarray:
    """Sum of `values` over all ranks, element by element; every rank must call it with the same shape.

    Args:
        values: float32, any shape. Integers travel as float32, exact up to 2**24.
        timeout: seconds to wait for the other ranks.

    Returns:
        float32 array of the same shape; with one process, a copy of the values.
    """
    values = np.asarray(values, np.float32)
    if _world_size == 1:
        return values.copy()
    from mindspore import Tensor, ops

    with waiting("an all-reduce", timeout):
        # As a vector of at least one entry: CPU has no all-reduce of a scalar.
        summed = ops.AllReduce()(Tensor(np.ascontiguousarray(values).reshape(-1))).asnumpy()
    return summed.reshape(values.shape)


def barrier(name: str, timeout: float = COLLECTIVE_TIMEOUT) -> None:
    """Return once every rank has called this; end the process if one has not within `timeout` seconds.

    Args:
        name: what the ranks meet for, for the message.
        timeout: seconds to wait.
    """
    if _world_size == 1:
        return
    with waiting(f"the other ranks at {name!r}", timeout):
        all_reduce_sum(np.ones(1, np.float32), timeout + 60)


def broadcast_bytes(data: bytes, size: int) -> bytes:
    """Rank 0's `data` on every rank.

    Bytes travel as 16-bit words, each as a float32 that is added to the other ranks' zeros, so they arrive exactly.

    Args:
        data: on rank 0 at most `size` bytes; ignored elsewhere.
        size: bytes to send, the same on every rank; shorter data is filled up with zeros.
    """
    words = np.zeros(-(-size // 2), np.uint16)
    if _rank == 0:
        words.view(np.uint8)[: len(data)] = np.frombuffer(data, np.uint8)
    if _world_size > 1:
        for start in range(0, len(words), _CHUNK):
            words[start : start + _CHUNK] = all_reduce_sum(words[start : start + _CHUNK])
    return words.tobytes()[:size]


def broadcast_parameters(parameters: Iterable[Parameter]) -> None:
    """Set `parameters`, given in the same order on every rank, to rank 0's values, in place."""
    parameters = list(parameters)
    if _world_size == 1 or not parameters:
        return
    from mindspore import Tensor

    arrays = [parameter.asnumpy() for parameter in parameters]
    data = broadcast_bytes(b"".join(array.tobytes() for array in arrays), sum(array.nbytes for array in arrays))
    offset = 0
    for parameter, array in zip(parameters, arrays):
        value = np.frombuffer(data, array.dtype, array.size, offset).reshape(array.shape)
        parameter.set_data(Tensor(value.copy(), parameter.dtype))
        offset += array.nbytes
