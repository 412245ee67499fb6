"""First rungs: is there a driver, is there CANN, does MindSpore start, does one operator compute."""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
from typing import Any

from focal.distributed.versions import find_cann
from tools.ascend_acceptance.child import run_task
from tools.ascend_acceptance.ladder import RungFailed, Session

OPERATOR_TOLERANCE = 2e-3  # of the largest entry: a product that is computed in float16 differs by some 5e-4


def find_cards() -> int:
    """How many Ascend cards this machine shows; 0 without a driver."""
    return len(glob.glob("/dev/davinci[0-9]*"))


def driver(session: Session) -> tuple[str, dict[str, Any]]:
    """The driver shows cards, and each says it is well."""
    cards = find_cards()
    if shutil.which("npu-smi") is None:
        if not cards:
            raise RungFailed("no npu-smi and no /dev/davinci*: the driver is not installed, or not visible here")
        return f"{cards} card(s) in /dev; no npu-smi to ask for their health", {"cards": cards}
    done = subprocess.run(["npu-smi", "info"], capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise RungFailed(
            f"npu-smi info ended with code {done.returncode}: {(done.stderr or done.stdout).strip()[:200]}"
        )
    found = read_npu_smi(done.stdout)
    unwell = [f"card {number}: {health}" for number, _, health in found["health"] if health != "OK"]
    if unwell or not found["health"]:
        raise RungFailed("; ".join(unwell) or "npu-smi info lists no card", **found)
    names = sorted({name for _, name, _ in found["health"]})
    return f"driver {found['driver']}, {len(found['health'])} x {', '.join(names)}, all OK", {"cards": cards, **found}


def read_npu_smi(text: str) -> dict[str, Any]:
    """Version of the driver, and (number, name, health) of each card, from the table of `npu-smi info`."""
    version = re.search(r"Version:\s*(\S+)", text)
    rows = re.findall(r"^\|\s*(\d+)\s+(\S+)\s*\|\s*(OK|Warning|Alarm|Critical|UNKNOWN)\b", text, re.MULTILINE)
    return {"driver": version[1] if version else "unknown", "health": [list(row) for row in rows]}


def cann(session: Session) -> tuple[str, dict[str, Any]]:
    """CANN is installed and can be found."""
    found = find_cann(os.environ)
    if found is None:
        raise RungFailed("no CANN found: install the toolkit and kernels, and source its set_env.sh")
    version, file = found
    return f"CANN {version}", {"cann": version, "file": str(file)}


def mindspore(session: Session) -> tuple[str, dict[str, Any]]:
    """MindSpore starts on the device, by the product's own start-up."""
    figures = run_task(session, "numerics:start_up", "start_up", target=session.target)
    level = figures["jit_level"] or "MindSpore's default"
    chip = figures["chip"] or session.target
    return f"MindSpore {figures['mindspore']}, NumPy {figures['numpy']}, {chip}, jit_level auto: {level}", figures


def operator(session: Session) -> tuple[str, dict[str, Any]]:
    """One matrix product equals NumPy's."""
    figures = run_task(session, "numerics:matrix_product", "operator", target=session.target)
    if not figures["deviation"] < OPERATOR_TOLERANCE:
        raise RungFailed(f"MatMul deviates from NumPy by {figures['deviation']:.1e} of the largest entry", **figures)
    return f"MatMul deviates by {figures['deviation']:.1e}", figures
