"""Small tools around child processes: ending whole groups, dying with the parent, following a log file."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Optional

_PR_SET_PDEATHSIG = 1
_FRAMEWORK_NOTE = re.compile(rb"^\[INFO\] DISTRIBUTED\(.*\n?", re.MULTILINE)
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None  # loaded before any fork


def die_with_parent() -> None:
    """In a new child: have the kernel kill it when its parent dies, however the parent dies (Linux only)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def end_groups(processes: Sequence[subprocess.Popen], timeout: float = 10.0) -> None:
    """Kill every process group led by `processes` (each started in a session of its own), children included.

    A group is killed even where its leader has ended, for what the leader left behind.
    """
    for process in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + timeout
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.1, deadline - time.monotonic()))


class Follower:
    """Copies what is appended to a file to the terminal, except MindSpore's notes on its connections.

    Those are written whatever GLOG_v says, and stay in the file. Bytes are copied as they are, whatever encoding the
    terminal has. A terminal that is gone (a closed ssh session, a reader of a pipe that has ended) is written to no
    longer; the file goes on.
    """

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        self.position = start
        self._stream: Optional[BinaryIO] = None

    def copy_new(self, to_the_end: bool = False) -> None:
        """Write all that came since the last call; a note cut off in mid-line waits, unless `to_the_end`."""
        try:
            # Kept open: a file that is removed or renamed meanwhile is still followed.
            self._stream = self._stream or open(self.path, "rb")  # noqa: SIM115
            self._stream.seek(self.position)
            new = self._stream.read()
        except OSError:  # not there, or not to be had just now: no reason to end a job
            return
        head, newline, tail = new.rpartition(b"\n")
        if tail.startswith(b"[") and not to_the_end:
            new = head + newline
        self.position += len(new)
        new = _FRAMEWORK_NOTE.sub(b"", new)
        if new:
            try:
                sys.stdout.buffer.write(new)
                sys.stdout.flush()
            except OSError:
                _leave_stdout()


def _leave_stdout() -> None:
    """Have what is written to stdout go nowhere, also what is still in its buffer and comes at the end."""
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def last_lines(path: Path, start: int, count: int) -> list[str]:
    """The last `count` lines of a file, looking no further back than byte `start`; none if it cannot be read."""
    try:
        with open(path, "rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(start, size - 65536))
            text = _FRAMEWORK_NOTE.sub(b"", stream.read()).decode("utf-8", "replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-count:]
