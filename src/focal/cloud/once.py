"""Work done once per machine: one local rank does it, the others wait for its marker.

The marker names this very job by a token that the ranks agree on when they start, so a marker left by an earlier job is
never taken for this one's. It tells success, failure with its reason, and, by the time in it, that the worker still
lives: nobody waits for a dead process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np

from focal.distributed.device import Device, all_reduce_sum
from focal.errors import UserError
from focal.files import read_json, write_json

logger = logging.getLogger("focal")

HEARTBEAT_SECONDS = 2.0
SILENCE_SECONDS = 60.0  # without a heartbeat, the working rank is taken for dead
POLL_SECONDS = 0.2
REMIND_SECONDS = 60.0
_RUNNING, _DONE, _FAILED = "running", "done", "failed"


def job_token(device: Device) -> str:
    """A name for this job that all its ranks share and no other job has: 64 random bits of rank 0.

    Every rank must call it.
    """
    words = np.frombuffer(secrets.token_bytes(8), np.uint16).astype(np.float32)
    agreed = all_reduce_sum(words if device.is_main else np.zeros_like(words)).astype(np.uint16)
    platform_name = os.environ.get("JOB_ID") or os.environ.get("MA_JOB_ID") or "job"
    return f"{''.join(letter for letter in platform_name if letter.isalnum())}-{agreed.tobytes().hex()}"


def marker_folder() -> Path:
    """Where markers live: always on this machine's own disk."""
    return Path(tempfile.gettempdir()) / f"focal-{os.getuid()}"


def once_per_machine(device: Device, what: str, work: Callable[[], None], token: str, timeout: float) -> None:
    """Run `work` in local rank 0 of each machine; return in every rank once it is done.

    Args:
        what: a word for the work, e.g. "data"; part of the marker's name and of messages.
        token: the same on all ranks and of this very piece of work: `job_token()` and a number.
        timeout: seconds after which a waiting rank gives up.

    Raises:
        UserError: the work failed, in every rank of the machine; or the worker died, or the time is up.
    """
    if device.local_size == 1:
        work()
        return
    marker = marker_folder() / f"{what}-{token}.json"
    if device.local_rank == 0:
        _work_and_tell(marker, what, work)
    else:
        _wait(marker, what, timeout)


def _work_and_tell(marker: Path, what: str, work: Callable[[], None]) -> None:
    marker.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    remove_stale_markers(marker.parent)
    try:
        with _heartbeat(marker):
            work()
    except BaseException as error:
        _write(marker, _FAILED, " ".join(str(error).split()) or type(error).__name__)
        raise
    _write(marker, _DONE)
    logger.info("%s: ready on this machine", what)


@contextlib.contextmanager
def _heartbeat(marker: Path) -> Iterator[None]:
    """Renew the marker all the while, and no longer: whatever is written afterwards stays."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(HEARTBEAT_SECONDS):
            _write(marker, _RUNNING)

    _write(marker, _RUNNING)
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _wait(marker: Path, what: str, timeout: float) -> None:
    start = heard = reminded = time.monotonic()
    last: Optional[dict[str, Any]] = None
    while True:
        state = read_json(marker)
        now = time.monotonic()
        if state is not None and state != last:
            last, heard = state, now
            if state["state"] == _DONE:
                return
            if state["state"] == _FAILED:
                raise UserError(f"{what}: local rank 0 failed: {state['reason']}")
        if now - heard > SILENCE_SECONDS:
            raise UserError(f"{what}: local rank 0 has given no sign of life for {SILENCE_SECONDS:.0f} s; see its log")
        if now - start > timeout:
            raise UserError(f"{what}: not ready after {timeout:.0f} s; see the log of local rank 0")
        if now - reminded > REMIND_SECONDS:
            reminded = now
            logger.info("waiting for local rank 0 to bring the %s, for %.0f min", what, (now - start) / 60)
        time.sleep(POLL_SECONDS)


def _write(marker: Path, state: str, reason: str = "") -> None:
    write_json(marker, {"state": state, "reason": reason, "pid": os.getpid(), "time": time.time()})


def remove_stale_markers(folder: Path) -> None:
    """Remove markers whose process has ended; those of a job still running beside this one stay."""
    for marker in folder.glob("*.json"):
        state = read_json(marker)
        if state is None or not _is_alive(int(state.get("pid", 0))):
            logger.info("removing the stale marker %s", marker.name)
            with contextlib.suppress(OSError):
                marker.unlink()


def _is_alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
