"""Check and measure a machine with Ascend cards: bash scripts/ascend_acceptance.sh [DATA] [flags]

Climbs a ladder, from the driver to a training on all cards, and stops at the first rung that fails. Prints a table, and
writes OUTPUT/acceptance.json, a row for the table in docs/performance.md, and the fastest settings that gave right
results. docs/acceptance.md says what each rung does and what to send back.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "src"), str(Path(__file__).resolve().parents[2])]

from focal.errors import UserError, run_main  # noqa: E402
from tools.ascend_acceptance import correctness, environment, recovery, speed  # noqa: E402
from tools.ascend_acceptance.ladder import (  # noqa: E402
    FAILED,
    PASSED,
    Outcome,
    Rung,
    Session,
    as_record,
    as_table,
    climb,
)
from tools.ascend_acceptance.settings import HEADER, mindcv_row, yaml_snippet  # noqa: E402
from tools.nano_networks import NANO_V2  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[2]
ASCEND_CONFIG = REPOSITORY / "configs" / "focalv2_small_useconv_patch4_window7_224.yaml"
CPU_CONFIG = {**NANO_V2, "enable_ema": True, "use_global_norm": True, "batch_size": 8, "num_parallel_workers": 2}

LADDER = (
    Rung("driver", environment.driver, needs_ascend=True),
    Rung("CANN", environment.cann, needs_ascend=True),
    Rung("MindSpore", environment.mindspore),
    Rung("one operator", environment.operator),
    Rung("logits", correctness.logits),
    Rung("gradients", correctness.gradients),
    Rung("trajectory", correctness.trajectory),
    Rung("overflow", correctness.overflow),
    Rung("flash", correctness.flash, needs_ascend=True),
    Rung("one card", speed.one_card),
    Rung("all cards", speed.all_cards),
    Rung("data", speed.data),
    Rung("compile cache", recovery.compile_cache),
    Rung("resume", recovery.resume),
)


def main() -> int:
    """Read the flags, climb, report; the exit code is 1 if a rung failed."""
    flags = _flags()
    session = _session(flags)
    wanted = [name.strip() for name in flags.rungs.split(",")] if flags.rungs else [rung.name for rung in LADDER]
    unknown = sorted(set(wanted) - {rung.name for rung in LADDER})
    if unknown:
        raise UserError(f"rungs: {unknown[0]!r} is not one of {', '.join(rung.name for rung in LADDER)}")
    session.folder.mkdir(parents=True, exist_ok=True)
    print(f"{session.target}, results in {session.folder}", flush=True)
    whole = climb([rung for rung in LADDER if rung.name in wanted], session, _show)
    outcomes = list(session.outcomes.values())
    record = summary(session)
    (session.folder / "acceptance.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print("\n" + as_table(outcomes))
    if record["mindcv_rows"]:
        print("\n" + "\n".join([HEADER, *record["mindcv_rows"]]))
    if record["fastest_safe_settings"]:
        checked = "" if record["results_checked"] else " (not known to be safe: logits or gradients were left out)"
        print(f"\nfastest safe settings{checked}:\n{record['fastest_safe_settings']}")
    if not whole:
        failed = next(outcome for outcome in outcomes if outcome.verdict == FAILED)
        print(f"\nSTOPPED at {failed.name!r}: {failed.note}")
    print(f"record: {session.folder / 'acceptance.json'}")
    return int(not whole)


def summary(session: Session) -> dict[str, Any]:
    """The record: versions, every outcome with its figures, rows for the table, the settings to take."""
    measured = session.figure("one card", "measured", [])
    fastest = session.figure("one card", "fastest")
    rows = [row for row in measured if row["settings"] == fastest and not row["error"]]
    together = session.outcomes.get("all cards")
    if together is not None and "ms_per_step" in together.figures:
        rows.append(together.figures)
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "target": session.target,
        "quick": session.quick,
        "machine": platform.platform(),
        "versions": {
            **{name: session.figure("MindSpore", name) for name in ("mindspore", "numpy", "python", "chip")},
            "cann": session.figure("CANN", "cann"),
            "driver": session.figure("driver", "driver"),
        },
        "passed": all(outcome.verdict != FAILED for outcome in session.outcomes.values()),
        "rungs": as_record(list(session.outcomes.values())),
        "results_checked": all(
            name in session.outcomes and session.outcomes[name].verdict == PASSED for name in ("logits", "gradients")
        ),
        "fastest_safe_settings": yaml_snippet(fastest, session.figure("flash", "attention", "")) if fastest else "",
        "mindcv_rows": [mindcv_row(row) for row in rows],
    }


def _show(outcome: Outcome) -> None:
    print(f"{outcome.verdict:>11}  {outcome.name}: {outcome.note} ({outcome.seconds:.0f} s)", flush=True)


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", help="folder of pictures for the data pipeline; default: synthetic ones")
    parser.add_argument("--device_target", choices=("auto", "Ascend", "CPU"), default="auto",
                        help="auto: Ascend if the machine shows a card")  # fmt: skip
    parser.add_argument(
        "--config", help="YAML of the network that is timed; default: Focal-fast-S, on a CPU a tiny one"
    )
    parser.add_argument("--devices", type=int, default=0, help="cards to use together; default: all (CPU: 2 processes)")
    parser.add_argument("--output", default="acceptance", help="folder for everything that is written")
    parser.add_argument("--quick", action="store_true", help="fewer combinations of settings, fewer steps")
    parser.add_argument("--rungs", default="", help="only these, by name, separated by commas")
    return parser.parse_args()


def _session(flags: argparse.Namespace) -> Session:
    cards = environment.find_cards()
    target = flags.device_target
    if target == "auto":
        target = "Ascend" if cards else "CPU"
    if flags.devices < 0:
        raise UserError(f"devices: {flags.devices} must be positive")
    for name in ("config", "data"):
        path = getattr(flags, name)
        if path is not None and not Path(path).exists():
            raise UserError(f"{name}: {path} does not exist")
    default_config = str(ASCEND_CONFIG) if target == "Ascend" else CPU_CONFIG
    return Session(
        target=target,
        quick=flags.quick,
        config=str(Path(flags.config).absolute()) if flags.config else default_config,
        data=str(Path(flags.data).absolute()) if flags.data else None,
        devices=flags.devices or (cards or 1 if target == "Ascend" else 2),
        folder=Path(flags.output).absolute(),
    )


if __name__ == "__main__":
    run_main(main)
