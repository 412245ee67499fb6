"""The workers that make batches ahead of the reader, and the path of what they could not read to the main process."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from focal.data.engine import Batch, NumberedBatches, ThreadedBatches, iterate, make_dataset
from focal.errors import UserError


class _Squares:
    """Batch k is k * k; later ones are ready sooner. Odd ones report sample k as unreadable; one may fail."""

    def __init__(self, fail_at: int = -1, error: type[Exception] = UserError) -> None:
        self.asked: list[int] = []
        self.reported: list[int] = []
        self.message = ""
        self._fail_at = fail_at
        self._error = error

    def make(self, number: int) -> Batch:
        self.asked.append(number)
        time.sleep(0.001 * (3 - number % 4))
        if number == self._fail_at:
            raise self._error(f"batch {number} failed")
        return np.array([number * number]), np.array([number if number % 2 else -1])

    def report(self, unreadable: np.ndarray, error: str) -> None:
        self.message = self.message or error
        self.reported += unreadable.tolist()
        if error:
            raise UserError(error)

    def threaded(self, count: int, workers: int) -> ThreadedBatches:
        return ThreadedBatches(NumberedBatches(self.make, range(count), 2), workers)


@pytest.mark.parametrize("workers", (1, 2, 16))
def test_batches_come_in_order(workers: int) -> None:
    assert [int(batch[0][0]) for batch in _Squares().threaded(20, workers)] == [k * k for k in range(20)]


def test_workers_run_ahead_of_a_slow_reader_by_a_bounded_number_of_batches() -> None:
    squares = _Squares()
    reader = iter(squares.threaded(50, workers=4))
    for taken in range(1, 4):
        next(reader)
        time.sleep(0.03)
        assert max(squares.asked) < taken + 4
    reader.close()


def test_the_engine_holds_a_bounded_number_of_batches_too() -> None:
    squares = _Squares()
    reader = iterate(make_dataset(squares.make, range(60), ["square"], squares.report, workers=4, processes=False))
    assert int(next(reader)[0][0]) == 0
    time.sleep(0.1)
    assert max(squares.asked) < 4 + 14  # the workers' batches and those that the engine holds between its stages
    assert [int(square[0]) for (square,) in reader] == [k * k for k in range(1, 60)]


@pytest.mark.parametrize("processes", (False, True))
def test_unreadable_samples_are_reported_in_order_and_do_not_reach_the_reader(processes: bool) -> None:
    squares = _Squares()
    dataset = make_dataset(squares.make, range(3, 9), ["square"], squares.report, workers=2, processes=processes)
    assert dataset.get_col_names() == ["square"] and dataset.get_dataset_size() == 6
    assert [int(square[0]) for (square,) in iterate(dataset)] == [k * k for k in range(3, 9)]
    assert squares.reported == [3, -1, 5, -1, 7, -1] and not squares.message


@pytest.mark.parametrize("processes", (False, True))
def test_a_batch_that_cannot_be_made_is_reported_and_ends_the_pass(processes: bool) -> None:
    squares = _Squares(fail_at=3)
    dataset = make_dataset(squares.make, range(4), ["square"], squares.report, workers=2, processes=processes)
    with pytest.raises(RuntimeError):
        list(iterate(dataset))
    assert squares.message == "batch 3 failed"


def test_any_other_error_of_a_worker_reaches_the_reader() -> None:
    reader = iter(_Squares(fail_at=3, error=ValueError).threaded(10, workers=2))
    assert [int(next(reader)[0][0]) for _ in range(3)] == [0, 1, 4]
    with pytest.raises(ValueError, match="batch 3"):
        next(reader)


def test_leaving_early_ends_the_threads() -> None:
    reader = iter(_Squares().threaded(1000, workers=4))
    next(reader)
    reader.close()
    deadline = time.monotonic() + 5
    while any(thread.name.startswith("focal-data") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
