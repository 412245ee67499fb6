"""Every test starts in graph mode on the CPU, as the product runs there."""

import mindspore as ms
import pytest


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
