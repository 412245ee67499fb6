"""The one place where MindSpore's dataset engine is asked for something."""

from __future__ import annotations

import os
from typing import Any, Iterator, Protocol, Sequence

import numpy as np


class Batches(Protocol):
    """Batch k is a tuple of arrays that depends on k alone."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int) -> tuple[np.ndarray, ...]: ...


# Batches held ready per worker, and between the engine's stages. Its default of 16 would hold gigabytes.
_PREFETCH = 2


def make_dataset(batches: Batches, columns: Sequence[str], workers: int, processes: bool) -> Any:
    """A MindSpore dataset that yields `batches` in order.

    Args:
        columns: names of the arrays of a batch.
        workers: batches made at the same time, as far as there are processors.
        processes: each worker is a process instead of a thread.
    """
    import mindspore.dataset as ds

    ds.config.set_prefetch_size(_PREFETCH)
    return ds.GeneratorDataset(
        batches,
        list(columns),
        # The engine refuses more workers than processors; more than batches would only be started and stopped.
        num_parallel_workers=max(1, min(workers, len(batches), available_processors())),
        python_multiprocessing=processes,
        shuffle=False,
    )


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
