"""The threads that make batches ahead of the reader."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from focal.data.engine import ThreadedBatches, iterate, make_dataset


class _Squares:
    """Batch k is [k * k]; later ones are ready sooner. Notes which were asked for."""

    def __init__(self, count: int, fail_at: int = -1) -> None:
        self.asked: list[int] = []
        self._count = count
        self._fail_at = fail_at

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, position: int) -> tuple[np.ndarray, ...]:
        self.asked.append(position)
        time.sleep(0.002 * (3 - position % 4))
        if position == self._fail_at:
            raise ValueError(f"batch {position}")
        return (np.array([position * position]),)


@pytest.mark.parametrize("workers", (1, 2, 16))
def test_order_is_kept(workers: int) -> None:
    assert [int(batch[0][0]) for batch in ThreadedBatches(_Squares(20), workers)] == [k * k for k in range(20)]


def test_workers_run_ahead_of_a_slow_reader_by_a_bounded_number_of_batches() -> None:
    batches = _Squares(50)
    reader = iter(ThreadedBatches(batches, 4))
    for taken in range(1, 4):
        next(reader)
        time.sleep(0.1)
        assert max(batches.asked) < taken + 4
    reader.close()


def test_through_the_engine_too() -> None:
    batches = _Squares(60)
    reader = iterate(make_dataset(batches, ["square"], workers=4, processes=False))
    assert int(next(reader)[0][0]) == 0
    time.sleep(0.3)
    assert max(batches.asked) < 4 + 12  # the workers' and what the engine holds between its stages
    assert [int(square[0]) for (square,) in reader] == [k * k for k in range(1, 60)]


def test_error_of_a_batch_reaches_the_reader_in_its_place() -> None:
    reader = iter(ThreadedBatches(_Squares(10, fail_at=3), 2))
    assert [int(next(reader)[0][0]) for _ in range(3)] == [0, 1, 4]
    with pytest.raises(ValueError, match="batch 3"):
        next(reader)


def test_leaving_early_ends_the_threads() -> None:
    reader = iter(ThreadedBatches(_Squares(1000), 4))
    next(reader)
    reader.close()
    deadline = time.monotonic() + 5
    while any(thread.name.startswith("focal-data") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
