"""Runs cases: each in a process with a simulated Ascend, several at a time.

Why a process for each: MindSpore reads the chip, the ranks and the libraries of CANN once; and in one process, it takes
longer for every further network, and compiles it again at each call.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Optional

from tools.ascend_dry_run.cases import Case
from tools.ascend_dry_run.result import DryRun, read_dry_run
from tools.ascend_dry_run.stubs import mindspore_folder, prepare_stubs

REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT = 7200.0  # seconds for one case; Focal-fast-T for eight ranks has taken 290 on a busy core
_GRAPH = "hwopt_d_after_stream_assign"  # the last pass. All passes of a large network are tens of gigabytes.
# Variables of a launcher, or of another simulation or log, around this process.
_OF_A_JOB = re.compile(r"MS_|RANK_|DEVICE_ID|MINDSPORE_HCCL|HCCL_|OMPI_|ASCEND_|GLOG_|LD_PRELOAD")


def dry_runs(
    cases: Mapping[str, Case], keep: Optional[Path] = None, jobs: int = 0, list_kernels: bool = False
) -> dict[str, DryRun]:
    """Compile every case. Returns their outcomes by the same names.

    Args:
        cases: by name.
        keep: folder that keeps logs and graphs, one folder per case; None: they are removed.
        jobs: processes at a time; 0: one per two processors, at least two.
        list_kernels: fill in `DryRun.launches`, which is also done for several ranks.

    Raises:
        UserError: no dry run is possible on this machine; see stubs.py.
    """
    stubs = prepare_stubs()
    jobs = jobs or max(2, (os.cpu_count() or 2) // 2)
    with ThreadPoolExecutor(jobs) as pool:
        folders = [keep / _file_name(name) if keep else None for name in cases]
        same = [stubs] * len(cases), folders, [list_kernels] * len(cases)
        return dict(zip(cases, pool.map(_dry_run, cases.values(), *same)))


def simulation_environment(stubs: Path, soc: str, ranks: int) -> dict[str, str]:
    """Variables of a process in which MindSpore finds a simulated Ascend.

    Args:
        stubs: from `prepare_stubs`.
        soc: name of the chip as CANN gives it, e.g. Ascend910B1 or Ascend910A.
        ranks: processes of the job of which that process is rank 0.
    """
    cann, library = stubs / "cann", mindspore_folder() / "lib"
    internal = library / "plugin" / "ascend" / "ms_kernels_internal"
    libraries = [cann / "lib64", library, library / "plugin" / "ascend", internal / "internal_kernel" / "lib",
                 internal / "asdops" / "lib"]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not _OF_A_JOB.match(name)}
    environment.update(
        ASCEND_HOME_PATH=str(cann), ASCEND_TOOLKIT_HOME=str(cann), ASCEND_OPP_PATH=str(cann / "opp"),
        ASCEND_DRY_RUN_SOC=soc, LD_PRELOAD=str(stubs / "libchip_name.so"), MS_SIMULATION_LEVEL="1",
        LD_LIBRARY_PATH=os.pathsep.join(map(str, libraries)),
        PYTHONPATH=os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "src", stubs / "python"))),
    )  # fmt: skip
    if ranks > 1:  # all that MindSpore's own launcher, msrun, sets in simulation mode
        environment.update(RANK_SIZE=str(ranks), RANK_ID="0", DEVICE_ID="0")
    return environment


def _dry_run(case: Case, stubs: Path, keep: Optional[Path], list_kernels: bool) -> DryRun:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        return _compile(case, stubs, keep, dump_graph=True)
    with tempfile.TemporaryDirectory(prefix="ascend_dry_run_") as folder:
        dump_graph = list_kernels or case.ranks > 1  # for the sizes of all-reduces
        return _compile(case, stubs, Path(folder), dump_graph)


def _compile(case: Case, stubs: Path, folder: Path, dump_graph: bool) -> DryRun:
    folder = folder.absolute()
    config = os.path.abspath(case.config) if isinstance(case.config, (str, Path)) else case.config
    case_file, result_file, log = folder / "case.json", folder / "result.json", folder / "log.txt"
    case_file.write_text(json.dumps(dataclasses.asdict(dataclasses.replace(case, config=config))), encoding="utf-8")
    result_file.unlink(missing_ok=True)
    shutil.rmtree(folder / "graphs", ignore_errors=True)  # of an earlier run with the same --keep
    environment = simulation_environment(stubs, case.soc, case.ranks)
    environment.update(GLOG_v="2", MS_SUBMODULE_LOG_v="{DEVICE:1,KERNEL:1}")  # these two say which kernels they choose
    if dump_graph:
        environment.update(MS_DEV_SAVE_GRAPHS="1", MS_DEV_SAVE_GRAPHS_PATH=str(folder / "graphs"))
        environment["MS_DEV_DUMP_IR_PASSES"] = _GRAPH
    command = [sys.executable, "-m", "tools.ascend_dry_run.child", str(case_file), str(result_file)]
    code: Any = f"none after {TIMEOUT:.0f} s"
    with log.open("wb") as out, contextlib.suppress(subprocess.TimeoutExpired):
        code = subprocess.run(command, cwd=folder, env=environment, stdout=out, stderr=out, timeout=TIMEOUT).returncode
    if result_file.exists():
        result = json.loads(result_file.read_text(encoding="utf-8"))
    else:
        result = {"error": f"the process ended with code {code}: {_last_words(log)}"}
    # Graphs are numbered from 0. Numbers from 4,000,000,000 on are single operators that ran outside the graph.
    return read_dry_run(log, sorted((folder / "graphs").rglob(f"{_GRAPH}_[0-9]_*.ir")), result)


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
