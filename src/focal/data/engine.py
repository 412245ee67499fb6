"""MindSpore's dataset engine, and the worker threads or processes that make batches for it.

This is the only file that asks the engine for anything. A worker gets a batch number and returns the whole batch, with
the numbers of unreadable samples and an error message beside its arrays. The main process takes these two off and
reports them before it passes the batch on. So errors take one path, from threads and from processes, whether batches
are read here or sent to the device (dataset_sink_mode).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Callable, Optional

import numpy as np

from focal.distributed.collectives import give_up
from focal.distributed.cores import available_cores
from focal.errors import UserError

if TYPE_CHECKING:
    from mindspore.dataset import Dataset

Batch = tuple[np.ndarray, ...]
Report = Callable[[np.ndarray, str], None]  # takes the numbers of unreadable samples, and the error message or ""

# Batches held ready between two stages of the engine, and per worker process. The default of 16 would hold a gigabyte.
_PREFETCH = 2
_WORKER_PATIENCE = 10.0  # seconds of waiting for a batch after which a dead worker process is held to owe it


class NumberedBatches:
    """The batches that a dataset holds, by position, as the engine's workers ask for them.

    Args:
        make_batch: batch number -> the arrays of the batch, the last of which lists unreadable samples.
        numbers: the batch numbers, in order.
        columns: how many arrays `make_batch` returns.
    """

    def __init__(self, make_batch: Callable[[int], Batch], numbers: range, columns: int) -> None:
        self._make_batch = make_batch
        self._numbers = numbers
        self._columns = columns

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, position: int) -> Batch:
        """The arrays of one batch and a string: empty, or the error message if the batch could not be made.

        An exception would not do: the engine turns it into an error of its own, with a page of text.
        """
        try:
            return (*self._make_batch(self._numbers[int(position)]), np.array(""))
        except UserError as error:
            return (*[np.full(1, -1)] * self._columns, np.array(str(error)))


class ThreadedBatches:
    """Iterates over batches in order while threads make the next ones; reports each and yields the rest of its arrays.

    The engine's own worker threads are limited to the number of processors, run up to 32 batches (300 MB) each ahead of
    a slow reader, and have their results polled only ten times a second.
    """

    def __init__(self, batches: NumberedBatches, workers: int, report: Report) -> None:
        self._batches = batches
        self._workers = workers
        self._report = report

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        pending: deque[Future[Batch]] = deque()
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="focal-data")
        try:
            for position in range(len(self._batches)):
                pending.append(pool.submit(self._batches.__getitem__, position))
                # One batch more than there are workers, so that none of them waits while the reader takes a batch.
                if len(pending) > self._workers:
                    yield self._reported(pending.popleft().result())
            while pending:
                yield self._reported(pending.popleft().result())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _reported(self, batch: Batch) -> Batch:
        *arrays, unreadable, error = batch
        self._report(unreadable, str(error))
        return tuple(arrays)


def make_dataset(
    make_batch: Callable[[int], Batch],
    numbers: range,
    columns: Sequence[str],
    report: Report,
    workers: int,
    processes: bool,
) -> Dataset:
    """A MindSpore dataset of batches, in the order of their numbers.

    Args:
        make_batch: batch number -> the arrays of `columns`, then the numbers of unreadable samples (int64, -1: none).
        numbers: the batch numbers.
        columns: names of the arrays that the dataset yields.
        report: called in this process for every batch, in order, with the numbers of unreadable samples and the message
            of the error that kept the batch from being made ("" if it was made); it raises if there is one.
        workers: batches made at the same time.
        processes: let processes of the engine make the batches instead of threads; they are limited to the number of
            processors.
    """
    import mindspore.dataset as ds

    workers = max(1, min(workers, len(numbers)))
    ds.config.set_prefetch_size(_PREFETCH)
    batches = NumberedBatches(make_batch, numbers, len(columns) + 1)
    if not processes:
        return ds.GeneratorDataset(ThreadedBatches(batches, workers, report), list(columns), num_parallel_workers=1)

    def reported(unreadable: np.ndarray, error: np.ndarray) -> np.ndarray:
        report(unreadable, str(error))
        return unreadable

    # Only the engine sees what its processes return. Threads need no map: it would hold nine more batches (87 MB).
    workers = min(workers, available_cores())
    dataset = ds.GeneratorDataset(
        batches, [*columns, "unreadable", "error"], num_parallel_workers=workers, shuffle=False
    )
    dataset = dataset.map(reported, ["unreadable", "error"], ["unreadable"], num_parallel_workers=1)
    return dataset.project(list(columns))


class WorkerWatch:
    """Ends this process, to be started again, when it waits for a batch that a dead worker process owes.

    MindSpore answers a worker's death with SIGTERM to this process. That stops a training after its current step, but
    does nothing while the main thread waits inside the engine, where Python handles no signals: it would wait for ever.

    Within `with`, children started since are watched.
    """

    def __init__(self) -> None:
        self._others = set(multiprocessing.active_children())
        self._waiting_since: Optional[float] = None
        self._done = threading.Event()

    def __enter__(self) -> WorkerWatch:
        threading.Thread(target=self._watch, name="worker-watch", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """The main thread waits for a batch."""
        self._waiting_since = time.monotonic()
        try:
            yield
        finally:
            self._waiting_since = None

    def _watch(self) -> None:
        workers: set[multiprocessing.process.BaseProcess] = set()
        while not self._done.wait(_WORKER_PATIENCE / 10):
            workers |= set(multiprocessing.active_children()) - self._others
            dead = [worker for worker in workers if worker.exitcode]
            since = self._waiting_since
            if dead and since is not None and time.monotonic() - since > _WORKER_PATIENCE:
                code = dead[0].exitcode
                how = f"was killed by signal {-code}" if code and code < 0 else f"ended with code {code}"
                give_up(
                    f"worker_processes: data worker {dead[0].pid} {how}, so a batch never comes; if memory ran out, "
                    "lower num_parallel_workers; --resume auto continues a training from its last checkpoint"
                )


def iterate(dataset: Dataset) -> Iterator[Batch]:
    """One pass over a dataset, as NumPy arrays; leaving early stops the workers."""
    with WorkerWatch() as watch:
        iterator = dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)
        try:
            while True:
                with watch.waiting():
                    arrays = next(iterator, None)
                if arrays is None:
                    return
                yield tuple(arrays)
        finally:
            iterator.stop()
