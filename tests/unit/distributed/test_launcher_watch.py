"""What the launcher makes of workers that end, with processes that are not trainings."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

from focal.config import load_config
from focal.distributed import launcher
from focal.errors import NOT_SAVED

SLEEPS = "import time; time.sleep(60)"
SAVES = "import signal, sys, time; signal.signal(2, lambda *a: (print('saved'), sys.exit(130))); time.sleep(60)"
FAILS_WHEN_ASKED = "import signal, sys, time; signal.signal(2, lambda *a: sys.exit('disk full')); time.sleep(60)"


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Callable[..., launcher._Job]]:
    """A job whose workers run these programs."""
    processes = []

    def make(*programs: str) -> launcher._Job:
        made = launcher._Job(load_config({"device_target": "CPU", "device_num": 2}).run, [], tmp_path)
        for rank, program in enumerate(programs):
            log = tmp_path / f"worker_{rank}.log"
            with open(log, "wb") as stream:
                process = subprocess.Popen([sys.executable, "-c", program], stdout=stream, stderr=subprocess.STDOUT)
            processes.append(process)
            made.workers.append(launcher.Worker(f"rank {rank}", process, log, 0))
        time.sleep(1.0)  # their handlers are set
        return made

    yield make
    for process in processes:
        process.kill()
        process.wait()


def interrupt_soon(job: launcher._Job) -> None:
    threading.Timer(0.3, job._on_signal, (signal.SIGINT, None)).start()


def test_workers_that_stop_when_asked_end_the_job_by_the_signal(job: Callable) -> None:
    made = job(SAVES, SAVES)
    interrupt_soon(made)
    assert made._watch() == 130


def test_a_worker_that_fails_when_asked_is_named_and_not_waited_for(
    job: Callable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(launcher, "FAILURE_GRACE", 1.0)
    monkeypatch.setattr(launcher, "INTERRUPT_GRACE", 50.0)
    logging.getLogger("focal").propagate = True
    made = job(SLEEPS.replace("import", "import signal; signal.signal(2, signal.SIG_IGN); import"), FAILS_WHEN_ASKED)
    interrupt_soon(made)
    start = time.monotonic()
    assert made._watch() == 1
    assert time.monotonic() - start < 40
    assert "rank 1 failed with exit code 1" in caplog.text and "disk full" in caplog.text


def test_a_worker_that_fails_ends_the_job_at_once(job: Callable, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("focal").propagate = True
    assert job(SLEEPS, "raise SystemExit(4)")._watch() == 4
    assert "rank 1 failed with exit code 4" in caplog.text


def test_rank_0_that_could_not_save_is_no_failure_and_the_others_come_to_their_end(
    job: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    """They may still be sending results; and what rank 0 said of the disk stays the last line."""
    made = job(f"raise SystemExit({NOT_SAVED})", "import time; time.sleep(2)")
    assert made._watch() == NOT_SAVED
    assert [worker.process.poll() for worker in made.workers] == [NOT_SAVED, 0] and not caplog.text


def test_workers_that_stop_when_asked_but_cannot_save_end_the_job_with_that(job: Callable) -> None:
    made = job(SAVES.replace("130", str(NOT_SAVED)), SAVES)
    interrupt_soon(made)
    assert made._watch() == NOT_SAVED


def test_ctrl_c_ends_the_wait_for_the_scheduler_but_does_not_fail_the_job(
    job: Callable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(launcher, "SCHEDULER_GRACE", 50.0)
    logging.getLogger("focal").propagate = True
    caplog.set_level(logging.INFO, logger="focal")
    made = job(SLEEPS, "")
    made.scheduler = made.workers.pop(0)
    threading.Timer(2.0, made._on_signal, (signal.SIGINT, None)).start()
    start = time.monotonic()
    assert made._watch() == 0
    assert time.monotonic() - start < 40
    assert "ending the scheduler, which is still running" in caplog.text
