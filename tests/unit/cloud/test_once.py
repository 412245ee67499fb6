"""One rank of each machine works and the others wait: success, failure with its reason, silence, the time limit."""

from __future__ import annotations

import threading
import time
from typing import Callable

import numpy as np
import pytest

from focal.cloud import once
from focal.cloud.once import once_per_machine
from focal.distributed.collectives import COLLECTIVE_TIMEOUT
from focal.distributed.device import Device
from focal.errors import UserError


def ranks_of(machines: int, per_machine: int) -> list[Device]:
    size = machines * per_machine
    return [Device(rank, size, rank % per_machine, per_machine) for rank in range(size)]


def failing(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


def test_one_rank_per_machine_works_and_all_wait_for_the_slowest(run_ranks: Callable) -> None:
    worked: list[int] = []
    finished: list[float] = []
    returned: list[float] = []

    def rank(device: Device) -> None:
        def work() -> None:
            time.sleep(0.4 * device.rank)
            worked.append(device.rank)
            finished.append(time.monotonic())

        once_per_machine(device, "data", work)
        returned.append(time.monotonic())

    outcome = run_ranks(*(lambda device=device: rank(device) for device in ranks_of(machines=2, per_machine=2)))
    assert outcome == [None] * 4
    assert sorted(worked) == [0, 2]
    assert min(returned) >= max(finished), "nobody went ahead"


def test_a_failure_ends_every_rank_with_its_reason(run_ranks: Callable) -> None:
    error = UserError("the bucket\nis gonë")
    works = {0: lambda: time.sleep(60), 2: failing(error)}  # the other machine still copies
    started = time.monotonic()
    outcome = run_ranks(
        *(
            lambda device=device: once_per_machine(device, "data", works.get(device.rank, failing(AssertionError())))
            for device in ranks_of(machines=2, per_machine=2)
        )
    )
    assert time.monotonic() - started < 20
    assert outcome[2] is error
    for rank in (0, 1, 3):
        assert isinstance(outcome[rank], UserError)
        assert str(outcome[rank]) == "data: rank 2 failed: the bucket is gonë; see its log"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()])
def test_any_exception_counts_as_a_failure(run_ranks: Callable, error: BaseException) -> None:
    outcome = run_ranks(
        *(lambda device=device: once_per_machine(device, "data", failing(error)) for device in ranks_of(1, 2))
    )
    assert outcome[0] is error
    assert type(error).__name__ in str(outcome[1])


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_copying_program_that_exits_ends_the_job_with_an_error(run_ranks: Callable, ranks: int) -> None:
    """SystemExit(0) would end rank 0 with exit code 0 and without a word."""
    outcome = run_ranks(
        *(
            lambda device=device: once_per_machine(device, "data", failing(SystemExit(0)))
            for device in ranks_of(1, ranks)
        )
    )
    assert all(isinstance(error, UserError) and "ended with sys.exit(0)" in str(error) for error in outcome)


def test_a_reason_longer_than_the_exchange_is_cut(run_ranks: Callable) -> None:
    outcome = run_ranks(
        *(
            lambda device=device: once_per_machine(device, "data", failing(OSError("ä" * 1000)))
            for device in ranks_of(1, 2)
        )
    )
    assert "ä" * 200 in str(outcome[1]) and len(str(outcome[1])) < 300


def test_a_rank_that_dies_is_noticed_by_the_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first exchange waits for ranks that come later; the next ones only for a sign of life."""
    timeouts: list[float] = []

    def all_reduce_sum(values: np.ndarray, timeout: float) -> np.ndarray:
        timeouts.append(timeout)
        if len(timeouts) == 3:
            raise TimeoutError  # where the real one ends the process
        return np.array([once._WORKING, once._DONE], np.float32)

    monkeypatch.setattr(once, "all_reduce_sum", all_reduce_sum)
    with pytest.raises(TimeoutError):
        once_per_machine(Device(1, 2, 1, 2), "data", failing(AssertionError()))
    assert [timeout - 60 for timeout in timeouts] == [COLLECTIVE_TIMEOUT, once.SILENCE_TIMEOUT, once.SILENCE_TIMEOUT]


@pytest.mark.parametrize("ranks", [1, 2])
def test_work_that_stalls_is_a_failure(run_ranks: Callable, monkeypatch: pytest.MonkeyPatch, ranks: int) -> None:
    monkeypatch.setattr(once, "WORK_TIMEOUT", 0.1)
    network = threading.Event()
    outcome = run_ranks(
        *(
            lambda device=device: once_per_machine(device, "data", lambda: network.wait(60) and None)
            for device in ranks_of(1, ranks)
        )
    )
    network.set()
    assert all("data: not ready after" in str(error) for error in outcome)


def test_a_long_wait_is_reported(
    run_ranks: Callable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(once, "REMIND_SECONDS", 0.1)
    run_ranks(
        *(lambda device=device: once_per_machine(device, "data", lambda: time.sleep(0.5)) for device in ranks_of(1, 2))
    )
    assert "data: not ready yet after" in caplog.text


def test_a_job_of_one_process_does_the_work_once() -> None:
    worked: list[int] = []
    once_per_machine(Device(), "data", lambda: worked.append(1))
    assert worked == [1]
