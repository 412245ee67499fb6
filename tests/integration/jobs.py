"""Starting real jobs from tests, finding their processes, and making sure that none is left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Callable, Optional

REPOSITORY = Path(__file__).resolve().parents[2]
_LAUNCH_VARIABLES = (
    "MS_", "MINDSPORE_", "VC_", "RANK_", "DEVICE_ID", "FOCAL_TEST", "FOCAL_LOCKED", "DATA_DOWNLOAD_METHOD", "LOCAL_"
)  # fmt: skip


class Job:
    """A command with all processes it starts, recognised by a variable they inherit."""

    def __init__(self, command: list[str], log: Path, **environment: str) -> None:
        self.mark = uuid.uuid4().hex
        clean = {name: value for name, value in os.environ.items() if not name.startswith(_LAUNCH_VARIABLES)}
        environment = {**clean, **environment, "FOCAL_TEST_JOB": self.mark}
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "wb") as stream:
            self.process = subprocess.Popen(
                command,
                env=environment,
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # A runner may have told its children to ignore Ctrl-C.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )

    @property
    def output(self) -> str:
        """What the terminal would show."""
        return self.log.read_text(errors="replace")

    def wait(self, timeout: float) -> int:
        """Exit code; the test fails with the output if the job takes longer."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s:\n{self.output}") from None

    def wait_until(self, condition: Callable[[], bool], timeout: float) -> None:
        """Return once `condition` holds; the test fails if the job ends or the time is up first."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None, f"ended early:\n{self.output}"
            assert time.monotonic() < deadline, f"not within {timeout} s:\n{self.output}"
            time.sleep(0.05)

    def processes(self) -> dict[int, str]:
        """Process id -> role (launcher, scheduler, rank N) of every living process of this job."""
        found = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with contextlib.suppress(OSError):
                    if "\nState:\tZ" in (folder / "status").read_text():
                        continue
                    variables = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
                    if f"FOCAL_TEST_JOB={self.mark}" in variables:
                        found[int(folder.name)] = _role(dict(v.partition("=")[::2] for v in variables))
        return found

    def pid_of(self, role: str) -> int:
        """Process id of "rank N" or "scheduler"."""
        return next(pid for pid, name in self.processes().items() if name == role)

    def left_behind(self, patience: float = 5.0) -> dict[int, str]:
        """Processes still alive after a moment; empty is what a test wants."""
        deadline = time.monotonic() + patience
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        return self.processes()

    def end(self) -> None:
        """Kill whatever is left of this job."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def _role(variables: dict[str, str]) -> str:
    if variables.get("MS_ROLE") == "MS_SCHED":
        return "scheduler"
    if variables.get("MS_ROLE") == "MS_WORKER":
        return f"rank {variables.get('MS_NODE_ID', '?')}"
    return "launcher"


@contextlib.contextmanager
def job(command: list[str], log: Path, **environment: Optional[str]) -> Iterator[Job]:
    """A running `Job`; whatever happens in the test, nothing of it outlives the block."""
    started = Job(command, log, **{name: value for name, value in environment.items() if value is not None})
    try:
        yield started
    finally:
        started.end()


def python(script: str, **keys: object) -> list[str]:
    """Command line of a script of this repository with config keys as flags, on CPU."""
    flags = {"device_target": "CPU", **keys}
    return [sys.executable, str(REPOSITORY / script), *(f"--{name}={value}" for name, value in flags.items())]
