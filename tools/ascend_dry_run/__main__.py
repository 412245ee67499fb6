"""Compile a network for an Ascend without one: python tools/ascend_dry_run --config configs/X.yaml [--json FILE]

Prints how often each operator is launched, by which kind of kernel, and the bytes that it moves; the all-reduces with
their sizes; a lower bound of the memory; and the rules that are broken (exit code 1). --json lists every kernel with
the shapes, types and formats of its tensors. Needs a C++ compiler on x86-64; sets itself up on first use.
Minutes for a large network. README.md in this folder says what a dry run proves and what it does not.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "src"), str(Path(__file__).resolve().parents[2])]

from focal.checkpoint.paths import check_output_file  # noqa: E402
from focal.errors import UserError, run_main  # noqa: E402
from tools.ascend_dry_run.cases import ATLAS_A2, EVAL, LEVELS, TRAIN, Case, matrix  # noqa: E402
from tools.ascend_dry_run.report import as_dict, as_matrix, as_text  # noqa: E402
from tools.ascend_dry_run.rules import violations  # noqa: E402
from tools.ascend_dry_run.simulate import dry_runs  # noqa: E402


def main() -> int:
    """Read the flags, compile, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", help="YAML file of the network and its training")
    what.add_argument("--matrix", action="store_true", help="small networks with all that changes a graph, as a table")
    parser.add_argument("--what", choices=(TRAIN, EVAL), default=TRAIN, help="training step, or evaluation")
    parser.add_argument("--ranks", type=_positive, default=1, help="processes of the job, of which rank 0 is compiled")
    parser.add_argument("--soc", default=ATLAS_A2, help="chip: Ascend910B1 (Atlas A2; default), Ascend910A, ...")
    parser.add_argument(
        "--jit_level", choices=LEVELS, default="",
        help="O0: kernel by kernel; O1: with graph kernels; O2: GE, of which only the conversion can be tried; "
        "default: the configuration's, of which auto means O1 on Atlas A2 and O2 on the 910A",
    )  # fmt: skip
    parser.add_argument("--batch", type=_positive, default=0, help="images; default: the configuration's batch_size")
    parser.add_argument(
        "--set", default={}, type=json.loads, help="JSON with settings that replace the configuration's"
    )
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--keep", type=Path, help="folder that keeps logs and graphs; default: they are removed")
    flags = parser.parse_args()
    if flags.json is not None:
        check_output_file("json", str(flags.json))
    cases = matrix() if flags.matrix else {Path(flags.config).stem: _case(flags)}
    runs = dry_runs(cases, flags.keep, list_kernels=not flags.matrix)
    results = {name: as_dict(case, runs[name]) for name, case in cases.items()}
    if flags.json is not None:
        figures: Any = results if flags.matrix else next(iter(results.values()))
        flags.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(as_matrix(cases, runs) if flags.matrix else "\n".join(as_text(c, runs[name]) for name, c in cases.items()))
    return int(any(violations(run, run.jit_level) for run in runs.values()))


def _case(flags: argparse.Namespace) -> Case:
    if not Path(flags.config).is_file():
        raise UserError(f"config: {flags.config} does not exist; configs/ holds those of the published models")
    if not flags.soc.startswith("Ascend"):
        raise UserError(f"soc: {flags.soc!r} is not a name that CANN gives a chip; Ascend910B1 and Ascend910A are")
    return Case(flags.config, flags.what, flags.ranks, flags.soc, flags.jit_level, flags.batch, flags.set)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number


if __name__ == "__main__":
    run_main(main)
