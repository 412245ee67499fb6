"""scripts/convert_weights.py, run in this process."""

import runpy
import sys

import pytest

from tests.unit.checkpoint.conversion import SCRIPT


@pytest.fixture
def script(monkeypatch, capsys, pynative_mode):
    """Runs the script with the given arguments; returns exit code, standard output, and standard error as lines."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        captured = capsys.readouterr()
        errors = [line for line in captured.err.splitlines() if "[WARNING]" not in line]  # MindSpore's own
        return end.value.code, captured.out, errors

    return run
