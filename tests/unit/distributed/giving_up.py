"""Runs a program that is expected to end itself by a time limit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from focal.distributed.collectives import TIMEOUT_EXIT_CODE

SOURCES = Path(__file__).resolve().parents[3] / "src"


def errors_of_giving_up(code: str) -> str:
    """What a program writes to stderr before it ends by a time limit."""
    result = subprocess.run([sys.executable, "-c", code], cwd=SOURCES, capture_output=True, text=True, timeout=30)
    assert result.returncode == TIMEOUT_EXIT_CODE
    return result.stderr
