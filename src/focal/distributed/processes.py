"""Helpers for child processes: ending whole groups, dying with the parent, following a log file."""

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
    """Have the kernel kill this process, a new child, when its parent dies for whatever reason (Linux only)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def end_groups(processes: Sequence[subprocess.Popen], timeout: float = 10.0) -> None:
    """Kill the process groups of `processes`, each of which was started in its own session, with all their children.

    A group is killed even if its leader has ended, because the leader's children may still run.
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

    MindSpore writes those whatever GLOG_v says; they stay in the file. Bytes are copied unchanged, whatever the
    terminal's encoding. Once the terminal is gone (a closed ssh session, a pipe whose reader has ended), nothing more
    is written to it; the file is still written.
    """

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        self.position = start
        self._stream: Optional[BinaryIO] = None

    def copy_new(self, to_the_end: bool = False) -> None:
        """Write what was appended since the last call; an incomplete note is kept for later, unless `to_the_end`."""
        try:
            # Kept open: a file that is removed or renamed meanwhile is still followed.
            self._stream = self._stream or open(self.path, "rb")  # noqa: SIM115
            self._stream.seek(self.position)
            new = self._stream.read()
        except OSError:  # missing, or unreadable for the moment: no reason to end a job
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
    """Discard what is written to stdout from now on, including what its buffer still holds."""
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
