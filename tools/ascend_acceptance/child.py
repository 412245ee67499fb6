"""Tasks run in processes of their own: what MindSpore is told once per process differs between them, and one that
crashes or hangs ends a rung and not the ladder.

Usage: python -m tools.ascend_acceptance.child MODULE:FUNCTION PARAMETERS.json RESULT.json
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from focal.errors import UserError
from tools.ascend_acceptance.ladder import RungFailed, Session

REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT = 3600.0  # seconds for a task; GE takes minutes for a large graph


def run_task(session: Session, task: str, name: str, **parameters: Any) -> dict[str, Any]:
    """Run a function of another module in a new process.

    Args:
        session: its folder takes log, parameters and result.
        task: "module:function", the module in this package; the function takes the parameters and returns figures.
        name: of the files.
        parameters: what JSON can hold.

    Raises:
        RungFailed: it raised, crashed, or took longer than `TIMEOUT`; the message names its log.
    """
    folder = session.folder / "tasks"
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}.{kind}" for kind in ("parameters.json", "result.json", "log")]
    parameter_file, result_file, log = files
    parameter_file.write_text(json.dumps(parameters, indent=1), encoding="utf-8")
    result_file.unlink(missing_ok=True)
    command = [sys.executable, "-m", __name__, task, str(parameter_file), str(result_file)]
    return read_result(run_command(command, log, folder), log, result_file)


def run_command(command: list[str], log: Path, folder: Path, timeout: float = TIMEOUT) -> str:
    """Run a command with the repository on its path; returns how it ended: "" or why it did not end well."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "src")))}
    with log.open("wb") as stream:
        try:
            code = subprocess.run(
                command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
                timeout=timeout,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"did not end within {timeout:.0f} s"
    return "" if code == 0 else f"ended with code {code}"


def read_result(ended: str, log: Path, result_file: Path) -> dict[str, Any]:
    """The figures that a task has left.

    Raises:
        RungFailed: it left an error, or nothing.
    """
    result = json.loads(result_file.read_text(encoding="utf-8")) if result_file.exists() else {}
    if "error" in result:
        raise RungFailed(f"{result['error']} (log: {log})")
    if ended or not result:
        raise RungFailed(f"the process {ended or 'left no result'}: {last_line(log)} (log: {log})")
    return result


def last_line(log: Path) -> str:
    """The last line of a log that is not MindSpore's own information."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    own = [line.strip() for line in lines if line.strip() and not line.startswith(("[INFO]", "[WARNING]"))]
    return own[-1][:300] if own else "its log is empty"


def main() -> None:
    task, parameter_file, result_file = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    module, _, function = task.partition(":")
    parameters = json.loads(parameter_file.read_text(encoding="utf-8"))
    try:
        result = getattr(importlib.import_module(f"tools.ascend_acceptance.{module}"), function)(**parameters)
    except UserError as error:
        result = {"error": str(error)}
    except Exception as error:
        import traceback

        traceback.print_exc()
        reason = str(error).partition("- C++ Call Stack")[0]
        result = {"error": f"{type(error).__name__}: {' '.join(reason.split())[:300]}"}
    result_file.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
