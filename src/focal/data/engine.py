"""The one place where MindSpore's dataset engine is asked for something, and the workers that make batches for it."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Iterator, Protocol, Sequence

import numpy as np


class Batches(Protocol):
    """Batch k is a tuple of arrays that depends on k alone."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int) -> tuple[np.ndarray, ...]: ...


# Batches held ready between the engine's stages, and per worker process. The default of 16 would hold gigabytes.
_PREFETCH = 2


class ThreadedBatches:
    """Iterates over batches in order while threads make the next ones.

    The engine's own worker threads would do as well, were it not that each of them runs up to 32 batches (1.2 GB)
    ahead of a slow reader, that their results are polled ten times a second, and that there may be no more of them than
    processors.
    """

    def __init__(self, batches: Batches, workers: int) -> None:
        self._batches = batches
        self._workers = workers

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[np.ndarray, ...]]:
        pending: deque[Future] = deque()
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="focal-data")
        try:
            for position in range(len(self._batches)):
                pending.append(pool.submit(self._batches.__getitem__, position))
                # One more than there are workers, so that none waits while the reader takes a batch.
                if len(pending) > self._workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def make_dataset(batches: Batches, columns: Sequence[str], workers: int, processes: bool) -> Any:
    """A MindSpore dataset that yields `batches` in order.

    Args:
        columns: names of the arrays of a batch.
        workers: batches made at the same time.
        processes: each worker is a process of the engine (then there are at most as many as processors) instead of a
            thread.
    """
    import mindspore.dataset as ds

    workers = max(1, min(workers, len(batches)))
    ds.config.set_prefetch_size(_PREFETCH)
    if processes:
        workers = min(workers, available_processors())
        return ds.GeneratorDataset(batches, list(columns), num_parallel_workers=workers, shuffle=False)
    return ds.GeneratorDataset(ThreadedBatches(batches, workers), list(columns), num_parallel_workers=1)


def available_processors() -> int:
    """Processors this process may run on."""
    count = os.cpu_count() or 1
    return min(count, len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else count


def iterate(dataset: Any) -> Iterator[list[np.ndarray]]:
    """One pass over a dataset, as NumPy arrays; leaving early stops the workers."""
    iterator = dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)
    try:
        yield from iterator
    finally:
        iterator.stop()
