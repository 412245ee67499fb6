"""Following a log file on the terminal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from focal.distributed.processes import Follower, last_lines

REPOSITORY = Path(__file__).resolve().parents[3]
NOTE = b"[INFO] DISTRIBUTED(1,2,python): connected\n"


def test_framework_messages_are_left_out_of_what_is_shown(tmp_path: Path, capfdbinary: pytest.CaptureFixture) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"earlier\n")
    follower = Follower(log, log.stat().st_size)
    with log.open("ab", buffering=0) as stream:
        for piece in (b"epoch 1", b": loss\n" + NOTE[:9], NOTE[9:] + b"epoch 2\n", b"[a bracket"):
            stream.write(piece)
            follower.copy_new()
    assert capfdbinary.readouterr().out == b"epoch 1: loss\nepoch 2\n"
    follower.copy_new(to_the_end=True)
    assert capfdbinary.readouterr().out == b"[a bracket"
    assert last_lines(log, 0, 2) == ["epoch 2", "[a bracket"]


def follow(tmp_path: Path, content: bytes, program: str, encoding: str) -> subprocess.Popen:
    (tmp_path / "log").write_bytes(content)
    follower = f"follower = Follower({str(tmp_path / 'log')!r}, 0)"
    code = f"from focal.distributed.processes import Follower\n{follower}\n{program}"
    environment = {"PYTHONIOENCODING": encoding, "PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY / "src")}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, cwd=REPOSITORY / "src", stdout=subprocess.PIPE
    )


@pytest.mark.parametrize("encoding", ["gbk", "ascii", "latin-1"])
def test_no_encoding_of_the_terminal_ends_the_job(tmp_path: Path, encoding: str) -> None:
    content = "naïve 图 \N{CROSS MARK}\n".encode() + b"\xff\xfe\n"
    process = follow(tmp_path, content, "follower.copy_new()", encoding)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, content)


def test_a_terminal_that_is_gone_does_not_end_the_job(tmp_path: Path) -> None:
    program = f"""
import os, sys, time
while not os.path.exists({str(tmp_path / "closed")!r}):
    time.sleep(0.01)
follower.copy_new()
with open({str(tmp_path / "log")!r}, "a") as log:
    log.write("more" * 100_000)
follower.copy_new()
print("also this")
sys.exit(7)
"""
    process = follow(tmp_path, b"x" * 100_000 + b"\n", program, "utf-8")
    process.stdout.close()
    (tmp_path / "closed").write_text("")
    assert process.wait(60) == 7  # its own exit code, not that of a failed flush


def test_a_log_that_is_removed_is_followed_to_its_end(tmp_path: Path, capfdbinary: pytest.CaptureFixture) -> None:
    log = tmp_path / "log"
    follower = Follower(log, 0)
    follower.copy_new()  # not there yet
    with log.open("wb", buffering=0) as stream:
        stream.write(b"one\n")
        follower.copy_new()
        log.unlink()
        stream.write(b"two\n")
        follower.copy_new()
    assert capfdbinary.readouterr().out == b"one\ntwo\n"
    assert last_lines(log, 0, 3) == []
