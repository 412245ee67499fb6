"""Main memory of a process whose networks run on the CPU."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from typing import Any

LARGEST_POOL = 64  # GiB
_GIB = 1 << 30


@functools.cache
def use_one_memory_pool() -> None:
    """Let MindSpore take the memory of its tensors from one range of addresses, half as large as the machine's memory.

    Only what is used of it counts. MindSpore's own way is a new range of 1 GiB whenever the ranges it has are too
    fragmented for a tensor; a training step of Focal-fast-T then grows by a fifth within its first steps.

    To be called before the first kernel runs; later calls do nothing.
    """
    from mindspore import runtime

    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _GIB
    runtime.set_memory(init_size=f"{max(1, min(LARGEST_POOL, machine // 2))}GB", increase_size="1GB")


def return_freed_memory() -> None:
    """Give memory back to the system that compiling a graph took and freed; where the C library can (glibc)."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def compile_ahead(cell: Any, *inputs: Any) -> bool:
    """Compile a Cell for such inputs before its first call, so that memory freed by the compiler is there for tensors.

    Returns:
        False in PyNative mode, where nothing is compiled.
    """
    import mindspore as ms

    if ms.get_context("mode") != ms.GRAPH_MODE:
        return False
    cell.compile(*inputs)
    return_freed_memory()
    return True
