"""Processor cores: how many this process may use, and how ranks that compute on them share them."""

from __future__ import annotations

import os


def available_cores() -> int:
    """Cores that this process may run on."""
    count = os.cpu_count() or 1
    return min(count, len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else count


def share_cores(processes: int) -> None:
    """Limit the OpenMP threads of this process to its share of the cores, at least one, unless OMP_NUM_THREADS is set.

    By default each process has a thread for each core, and a thread that waits for the others keeps its core busy. On
    two cores, two ranks of a small network trained a tenth as many images a second as with one thread each.

    Must be called before MindSpore is imported, which reads the variable.

    Args:
        processes: ranks on this machine, this one included; with 1, nothing is set.
    """
    if processes > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // processes)))
