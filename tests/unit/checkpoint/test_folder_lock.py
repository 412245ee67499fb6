"""One training at a time in a folder: with processes, since the lock belongs to one."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

import pytest

from focal.checkpoint import folder_lock
from focal.checkpoint.folder_lock import LOCKED_VARIABLE, lock_folder
from focal.errors import UserError
from focal.files import LOCK_FILE

SOURCES = Path(__file__).resolve().parents[3] / "src"
HOLD = """
import os, sys, time
from focal.checkpoint.folder_lock import lock_folder
lock_folder(sys.argv[1])
if sys.argv[2:] == ["fork"] and os.fork() == 0:
    os.setsid()
    os.write(1, b"%d\\n" % os.getpid())
    time.sleep(60)
    os._exit(0)
os.write(1, b"locked\\n")  # in one piece, as the child writes at the same time
time.sleep(60)
"""


@contextlib.contextmanager
def holder(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen, set[str]]]:
    """A process that has locked `folder`, and the lines that it has printed."""
    line = [sys.executable, "-c", HOLD, str(folder), *arguments]
    with subprocess.Popen(line, cwd=SOURCES, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, {process.stdout.readline().strip() for _ in range(1 + len(arguments))}
        finally:
            process.kill()


@pytest.fixture(autouse=True)
def no_lock_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(LOCKED_VARIABLE, "")  # so that it is put back after the test
    yield
    folder_lock._close_all()


def test_a_second_training_is_refused_with_the_process_of_the_first(tmp_path: Path) -> None:
    with holder(tmp_path / "out") as (process, _):
        with pytest.raises(UserError) as error:
            lock_folder(str(tmp_path / "out"))
        message = str(error.value)
        assert f"process {process.pid} on {os.uname().nodename}, since 20" in message and "\n" not in message
        lock_folder(str(tmp_path / "another"))
    lock_folder(str(tmp_path / "out"))  # killed: the lock is gone with the process
    lock_folder(str(tmp_path / "out"))  # and whoever has it may ask again


WORK = [
    sys.executable,
    "-c",
    "import sys; from focal.checkpoint.folder_lock import lock_folder; lock_folder(sys.argv[1])",
]


@pytest.mark.parametrize("owner", [None, ""], ids=["named", "unnamed, as on a full disk"])
def test_a_worker_of_the_launcher_that_has_the_lock_may_work(tmp_path: Path, owner: Optional[str]) -> None:
    lock_folder(str(tmp_path))
    if owner is not None:
        (tmp_path / LOCK_FILE).write_text(owner)
    assert subprocess.run([*WORK, str(tmp_path)], cwd=SOURCES, timeout=60).returncode == 0


def test_a_process_that_did_not_get_the_lock_from_its_parent_is_refused(tmp_path: Path) -> None:
    """A training that is process 1 of a container is the parent of every orphan there, and of other trainings."""
    lock_folder(str(tmp_path))
    for inherited in ({}, {LOCKED_VARIABLE: str(tmp_path / "another" / LOCK_FILE)}):
        clean = {name: value for name, value in os.environ.items() if name != LOCKED_VARIABLE}
        done = subprocess.run(
            [*WORK, str(tmp_path)], cwd=SOURCES, timeout=60, capture_output=True, text=True, env={**clean, **inherited}
        )
        assert done.returncode != 0 and f"in use by another training (process {os.getpid()} on" in done.stderr


def test_a_forked_worker_that_outlives_a_killed_training_keeps_nobody_out(tmp_path: Path) -> None:
    with holder(tmp_path, "fork") as (process, said):
        (child,) = said - {"locked"}
        process.kill()
        process.wait()
        try:
            os.kill(int(child), 0)  # it is alive
            lock_folder(str(tmp_path))
        finally:
            os.kill(int(child), 9)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_gets_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    def unsupported(*arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(folder_lock.fcntl, "flock", unsupported)
    lock_folder(str(tmp_path))
    assert caplog.text.count("offers no locks") == 1


def test_the_lock_of_a_server_that_may_have_crashed_comes_with_a_way_out(tmp_path: Path) -> None:
    way_out = f"; if that server has crashed, wait two minutes or remove {tmp_path / LOCK_FILE}"
    with holder(tmp_path):
        with pytest.raises(UserError) as here:
            lock_folder(str(tmp_path))
        (tmp_path / LOCK_FILE).write_text('{"host": "another", "process": 7, "since": "2026-01-02 03:04:05"}')
        with pytest.raises(UserError) as elsewhere:
            lock_folder(str(tmp_path))
    assert "process 7 on another, since 2026" in str(elsewhere.value)
    assert str(elsewhere.value).endswith(way_out) and "crashed" not in str(here.value)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="train_url: .*file cannot be written"):
        lock_folder(str(tmp_path / "file"))


def test_a_lock_file_that_says_nothing_of_its_owner_still_locks(tmp_path: Path) -> None:
    """The disk was full when the owner wrote its number, or the file is another program's."""
    with holder(tmp_path):
        for content in ("", "[1]", "{}", '{"process": 1}'):
            (tmp_path / LOCK_FILE).write_text(content)
            with pytest.raises(UserError, match="an unknown process"):
                lock_folder(str(tmp_path))
