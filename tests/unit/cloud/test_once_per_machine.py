"""One rank works, the others wait: success, failure, death, stale markers. Ranks are threads or real processes here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from focal.cloud import once
from focal.cloud.once import job_token, once_per_machine
from focal.distributed.device import Device
from focal.errors import UserError

WORKER = Device(rank=0, world_size=2, local_rank=0, local_size=2)
WAITER = Device(rank=1, world_size=2, local_rank=1, local_size=2)


@pytest.fixture(autouse=True)
def markers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "markers"
    monkeypatch.setattr(once, "marker_folder", lambda: folder)
    return folder


def wait_in_thread(token: str, timeout: float = 30.0) -> tuple[threading.Thread, list]:
    """A waiting rank; the list gets "done" or its error."""
    outcome: list = []

    def wait() -> None:
        try:
            once_per_machine(WAITER, "data", lambda: outcome.append("worked"), token, timeout)
            outcome.append("done")
        except UserError as error:
            outcome.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread, outcome


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_others_wait_until_the_work_is_done() -> None:
    thread, outcome = wait_in_thread("a")
    finished = []

    def work() -> None:
        time.sleep(0.5)
        assert outcome == []  # nobody went ahead
        finished.append(True)

    once_per_machine(WORKER, "data", work, "a", 30.0)
    thread.join(5)
    assert finished == [True] and outcome == ["done"]


def test_failure_reaches_every_rank_with_its_reason() -> None:
    thread, outcome = wait_in_thread("a")
    with pytest.raises(UserError, match="bucket"):
        once_per_machine(WORKER, "data", lambda: (_ for _ in ()).throw(UserError("bucket\nis gone")), "a", 30.0)
    failed = time.monotonic()
    thread.join(5)
    assert time.monotonic() - failed < 2.0
    assert str(outcome[0]) == "data: local rank 0 failed: bucket is gone"


def test_any_exception_counts_as_failure() -> None:
    thread, outcome = wait_in_thread("a")
    with pytest.raises(KeyboardInterrupt):
        once_per_machine(WORKER, "data", lambda: (_ for _ in ()).throw(KeyboardInterrupt()), "a", 30.0)
    thread.join(5)
    assert "KeyboardInterrupt" in str(outcome[0])


def test_a_marker_of_another_job_is_not_believed(markers: Path) -> None:
    markers.mkdir()
    stale = markers / "data-old.json"
    stale.write_text(json.dumps({"state": "done", "reason": "", "pid": dead_pid(), "time": 0}))
    thread, outcome = wait_in_thread("new")
    time.sleep(0.3)
    assert outcome == []  # still waiting
    once_per_machine(WORKER, "data", lambda: None, "new", 30.0)
    thread.join(5)
    assert outcome == ["done"]
    assert not stale.exists()  # its process is dead: removed


def test_a_marker_of_a_job_still_running_is_left_alone(markers: Path) -> None:
    markers.mkdir()
    other = markers / "data-other.json"
    other.write_text(json.dumps({"state": "running", "reason": "", "pid": os.getppid(), "time": 0}))
    once_per_machine(WORKER, "data", lambda: None, "new", 30.0)
    assert other.exists()


def test_a_worker_that_dies_is_noticed(markers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(once, "SILENCE_SECONDS", 0.5)
    markers.mkdir()
    (markers / "data-a.json").write_text(json.dumps({"state": "running", "reason": "", "pid": dead_pid(), "time": 0}))
    thread, outcome = wait_in_thread("a")
    thread.join(5)
    assert "no sign of life" in str(outcome[0])


def test_a_slow_worker_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(once, "SILENCE_SECONDS", 2.0)
    monkeypatch.setattr(once, "HEARTBEAT_SECONDS", 0.1)
    thread, outcome = wait_in_thread("a")
    once_per_machine(WORKER, "data", lambda: time.sleep(3.0), "a", 30.0)  # more than the allowed silence
    thread.join(30)
    assert outcome == ["done"]


def test_the_time_limit_holds(markers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    thread, outcome = wait_in_thread("a", timeout=0.3)
    thread.join(5)
    assert "not ready after 0 s" in str(outcome[0])


def test_alone_on_the_machine_there_is_no_marker(markers: Path) -> None:
    done = []
    once_per_machine(Device(rank=1, world_size=2), "data", lambda: done.append(1), "a", 1.0)
    assert done == [1] and not markers.exists()


def test_tokens_differ_and_name_the_platforms_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOB_ID", "ma-42/x")
    first, second = job_token(Device()), job_token(Device())
    assert first != second
    assert first.startswith("ma42x-") and len(first) == len("ma42x-") + 16
