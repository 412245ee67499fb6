"""The bar, on a pseudo-terminal and where there is none."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[3] / "src"
EPOCH = """
import sys, time
sys.path.insert(0, sys.argv[1])
sys.modules.update({name: None for name in sys.argv[2:]})  # importing these fails
from focal.distributed.logging import setup_logging
from focal.trainers.progress_bar import ProgressBar

logger = setup_logging(0)
bar = ProgressBar(wanted=True)
with bar.waiting("compiling"):
    time.sleep(2.2)
    logger.info("while compiling")
bar.start("epoch 1/3", 10, 7)
bar.advance()
bar.show("loss 1.5")
logger.warning("a warning")
bar.close()
logger.info("after the epoch")
"""


def on_a_terminal(*missing: str, no_color: str = "") -> str:
    """What a terminal of 120 columns receives during EPOCH."""
    terminal, end = pty.openpty()
    line = [sys.executable, "-c", EPOCH, str(SOURCES), *missing]
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))  # rows and columns
    environment = {**os.environ, "NO_COLOR": no_color}
    process = subprocess.Popen(line, stdout=end, stderr=end, stdin=subprocess.DEVNULL, env=environment)
    os.close(end)
    received = b""
    try:
        while True:
            received += os.read(terminal, 65536)
    except OSError:  # the other end is closed
        pass
    os.close(terminal)
    assert process.wait(60) == 0, received.decode()
    return received.decode()


def test_a_terminal_shows_how_long_a_compilation_has_taken():
    pytest.importorskip("tqdm", reason="the bar needs tqdm: pip install -r requirements.txt")
    pieces = on_a_terminal().replace("\r\n", "\n").split("\r")
    assert [piece for piece in pieces if piece.startswith("compiling 00:0")][:2] == [
        "compiling 00:00",
        "compiling 00:01",
    ]
    assert any(piece.endswith("INFO while compiling\n") for piece in pieces), "a line of its own above it"


def test_a_terminal_shows_a_bar_with_lines_above_it():
    pytest.importorskip("tqdm", reason="the bar needs tqdm: pip install -r requirements.txt")
    text = on_a_terminal()
    assert "epoch 1/3  70 %|" in text and "7/10 [" in text and "loss 1.5" in text
    pieces = text.replace("\r\n", "\n").split("\r")
    (warning,) = [piece for piece in pieces if "a warning" in piece]
    line = warning.split("\n")[0]
    assert line.startswith("\033[33m") and line.endswith("WARNING a warning\033[0m"), "a yellow line of its own"
    assert text.rstrip().endswith("INFO after the epoch") and "%|" not in pieces[-1]


def test_without_tqdm_a_terminal_shows_lines_only():
    text = on_a_terminal("tqdm")
    assert text.count("\n") == 3 and "%|" not in text and "after the epoch" in text


def test_warnings_have_no_colour_for_those_who_want_none():
    assert "\033[3" not in on_a_terminal("tqdm", no_color="1")


def test_a_file_gets_lines_only():
    line = [sys.executable, "-c", EPOCH, str(SOURCES)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=True)
    assert "\r" not in done.stdout and done.stderr == ""
    assert [text.split(" ", 1)[1] for text in done.stdout.splitlines()] == [
        "INFO while compiling", "WARNING a warning", "INFO after the epoch",
    ]  # fmt: skip
