"""Runs cases: each in a process with a simulated Ascend, several at a time.

Why a process for each: MindSpore reads the chip, the ranks and the libraries of CANN once; and in one process, it takes
longer for every further network, and compiles it again at each call.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Optional

from tools.ascend_dry_run.cases import Case
from tools.ascend_dry_run.result import DryRun, read_dry_run
from tools.ascend_dry_run.stubs import prepare_stubs, simulation_environment

REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT = 7200.0  # seconds for one case; Focal-fast-B takes a quarter of an hour
_GRAPH = "hwopt_d_after_stream_assign"  # the last pass. All passes of a large network are tens of gigabytes.


def dry_runs(cases: Mapping[str, Case], keep: Optional[Path] = None, jobs: int = 0) -> dict[str, DryRun]:
    """Compile every case. Returns their outcomes by the same names.

    Args:
        cases: by name.
        keep: folder that keeps logs and graphs, one folder per case; None: they are removed.
        jobs: processes at a time; 0: one per two processors, at least two.

    Raises:
        UserError: no dry run is possible on this machine; see stubs.py.
    """
    stubs = prepare_stubs()
    jobs = jobs or max(2, (os.cpu_count() or 2) // 2)
    with ThreadPoolExecutor(jobs) as pool:
        folders = [keep / _file_name(name) if keep else None for name in cases]
        return dict(zip(cases, pool.map(_dry_run, cases.values(), [stubs] * len(cases), folders)))


def _dry_run(case: Case, stubs: Path, keep: Optional[Path]) -> DryRun:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        return _compile(case, stubs, keep)
    with tempfile.TemporaryDirectory(prefix="ascend_dry_run_") as folder:
        return _compile(case, stubs, Path(folder))


def _compile(case: Case, stubs: Path, folder: Path) -> DryRun:
    folder = folder.absolute()
    config = os.path.abspath(case.config) if isinstance(case.config, (str, Path)) else case.config
    case_file, result_file, log = folder / "case.json", folder / "result.json", folder / "log.txt"
    case_file.write_text(json.dumps(dataclasses.asdict(dataclasses.replace(case, config=config))), encoding="utf-8")
    result_file.unlink(missing_ok=True)
    environment = simulation_environment(stubs, case.soc, case.ranks)
    environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "src"), environment["PYTHONPATH"]])
    environment.update(
        MS_DEV_SAVE_GRAPHS="1", MS_DEV_SAVE_GRAPHS_PATH=str(folder / "graphs"), MS_DEV_DUMP_IR_PASSES=_GRAPH,
        GLOG_v="2", MS_SUBMODULE_LOG_v="{DEVICE:1,KERNEL:1}",  # these two say which kernels they choose
    )  # fmt: skip
    command = [sys.executable, "-m", "tools.ascend_dry_run.child", str(case_file), str(result_file)]
    with log.open("wb") as output:
        try:
            code: Any = subprocess.run(command, cwd=folder, env=environment, stdout=output, stderr=output,
                                       timeout=TIMEOUT).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            code = f"none after {TIMEOUT:.0f} s"
    if result_file.exists():
        told = json.loads(result_file.read_text(encoding="utf-8"))
    else:
        told = {"error": f"the process ended with code {code}: {_last_words(log)}"}
    graphs = sorted((folder / "graphs").rglob(f"*{_GRAPH}*.ir"))
    return read_dry_run(log, graphs, told)


def _last_words(log: Path) -> str:
    """The last line of a log that is not MindSpore's own information."""
    last = "it says nothing"
    with log.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.strip() and not line.startswith(("[INFO]", "[WARNING]")):
                last = line.strip()[:500]
    return last


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)
