"""Collective operations of one process, and the time limit of those that wait for others."""

from __future__ import annotations

import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest

from focal.distributed.collectives import all_reduce_sum, barrier, broadcast_bytes, broadcast_parameters
from focal.distributed.device import shutdown
from tests.unit.distributed.giving_up import SOURCES, errors_of_giving_up


def test_with_one_process_collectives_return_their_input() -> None:
    values = np.array([[1.5, -2.0]], np.float32)
    summed = all_reduce_sum(values)
    assert summed.dtype == np.float32 and (summed == values).all() and summed is not values
    parameter = ms.Parameter(ms.Tensor([3, 4], ms.int32), name="p")
    broadcast_parameters([parameter])
    assert parameter.asnumpy().tolist() == [3, 4]
    barrier("nothing to wait for", timeout=0.0)
    shutdown()


@pytest.mark.parametrize("data", [b"", b"abc", b"\x00\xff" * 5])
def test_bytes_arrive_filled_up_to_the_size(data: bytes) -> None:
    assert broadcast_bytes(data, 10) == data + b"\0" * (10 - len(data))


def test_a_wait_that_never_ends_ends_the_process() -> None:
    code = (
        "import time, logging; logging.basicConfig()\n"
        "from focal.distributed.collectives import waiting\n"
        "with waiting('the moon', 1.0): time.sleep(60)"
    )
    errors = errors_of_giving_up(code)
    assert "rank 0 waited 1 s for the moon and gives up" in errors


def test_a_wait_that_ends_is_left_alone() -> None:
    imports = "import time\nfrom focal.distributed.collectives import waiting\n"
    code = imports + "with waiting('nothing', 0.2): pass\ntime.sleep(0.5)"
    assert subprocess.run([sys.executable, "-c", code], cwd=SOURCES, timeout=30).returncode == 0
