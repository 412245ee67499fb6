"""Every test starts in graph mode on the CPU, as the product runs there."""

import os

import pytest

from focal.distributed.cores import share_cores

share_cores(int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))  # workers of pytest-xdist, as if they were ranks

import mindspore as ms  # noqa: E402


@pytest.fixture(autouse=True)
def graph_mode_on_cpu():
    ms.set_device("CPU")  # before the first kernel of the session: later calls must find it said already
    ms.set_context(mode=ms.GRAPH_MODE)


@pytest.fixture
def pynative_mode(graph_mode_on_cpu):
    """MindSpore's default mode, in which users first try things."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    yield
    ms.set_context(mode=ms.GRAPH_MODE)
