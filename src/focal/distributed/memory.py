"""Main memory of a process whose networks run on the CPU."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing this module does not import the framework
    from mindspore import Tensor, nn

LARGEST_POOL = 64  # GiB
_GIB = 1 << 30


@functools.cache
def use_one_memory_pool() -> None:
    """Let MindSpore take the memory of its tensors from one range of addresses, half as large as the machine's memory.

    Only the part that is used occupies memory. By default MindSpore adds a range of 1 GiB whenever its ranges are too
    fragmented for a tensor; a training step of Focal-fast-T then grows by a fifth within its first steps.

    Must be called before the first kernel runs; later calls do nothing.
    """
    from mindspore import runtime

    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _GIB
    runtime.set_memory(init_size=f"{max(1, min(LARGEST_POOL, machine // 2))}GB", increase_size="1GB")


def return_freed_memory() -> None:
    """Return to the system what compiling a graph has freed, where the C library can do that (glibc)."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def compile_ahead(cell: nn.Cell, *inputs: Tensor) -> bool:
    """Compile `cell` for inputs of these shapes before its first call, so that tensors can use the compiler's memory.

    Returns:
        False in PyNative mode, where no graph is compiled.
    """
    import mindspore as ms

    if ms.get_context("mode") != ms.GRAPH_MODE:
        return False
    cell.compile(*inputs)
    return_freed_memory()
    return True
