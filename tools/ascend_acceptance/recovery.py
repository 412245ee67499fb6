"""Rungs about starting again: a cached compilation, and a training that was killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tools.ascend_acceptance.child import REPOSITORY, TIMEOUT, last_line, run_task
from tools.ascend_acceptance.ladder import RungFailed, Session
from tools.ascend_acceptance.pictures import CLASSES, write_pictures
from tools.nano_networks import NANO_V2

# Two starts of one training give the same losses on a CPU, to the last bit. An Ascend may add in another order.
LOSS_TOLERANCE = {"CPU": 0.0, "Ascend": 1e-3}
SAVE_STEPS, KILL_AFTER = 2, 5  # steps
# A small network with the whole recipe; 64 pictures are 8 steps an epoch.
TRAINING = {**NANO_V2, "num_classes": CLASSES, "batch_size": 8, "epochs": 2, "mix_up": 0.8, "cutmix": 1.0,
            "enable_ema": True, "use_global_norm": True, "num_parallel_workers": 2, "log_steps": 1,
            "save_steps": SAVE_STEPS, "base_lr": 0.01}  # fmt: skip


def largest_difference(losses: list[float], others: list[float]) -> float:
    """Largest relative difference of two series of losses; infinite if their lengths differ."""
    if len(losses) != len(others):
        return float("inf")
    return max((abs(a - b) / max(abs(a), 1e-6) for a, b in zip(losses, others)), default=0.0)


def compile_cache(session: Session) -> tuple[str, dict[str, Any]]:
    """A second start loads the compiled step and trains alike."""
    cache = session.folder / f"compile_cache_{time.time():.0f}"  # a new one: the first start must compile
    overrides = {"device_target": session.target, "amp_level": "O0", "batch_size": 8, "compile_cache": str(cache)}
    first, second = (
        run_task(session, "step_time:measure", f"compile_cache_{number}", config=NANO_V2, overrides=overrides,
                 steps=2, rounds=1)
        for number in (1, 2)
    )  # fmt: skip
    difference = largest_difference(first["losses"], second["losses"])
    figures = {"first_seconds": first["compile_seconds"], "second_seconds": second["compile_seconds"],
               "difference": difference, "second_was": second["step_was"]}  # fmt: skip
    if not second["step_was"].startswith("loaded"):
        raise RungFailed("the second start compiled again: leave compile_cache off", **figures)
    if not difference <= LOSS_TOLERANCE[session.target]:
        raise RungFailed(f"losses differ by {difference:.0e}: leave compile_cache off", **figures)
    return f"compiled in {first['compile_seconds']:.1f} s, loaded in {second['compile_seconds']:.1f} s, equal losses", (
        figures
    )


def resume(session: Session) -> tuple[str, dict[str, Any]]:
    """A training that is killed and resumed has the losses of one that was not."""
    folder = (session.folder / "resume").absolute()
    write_pictures(folder / "pictures", 64, (48, 40))
    (folder / "config.json").write_text(json.dumps({**TRAINING, "device_target": session.target}), encoding="utf-8")
    number = f"{time.time():.0f}"  # of this run: results of another one may be in the folder
    whole, killed = folder / f"whole_{number}", folder / f"killed_{number}"
    _train(folder, whole)
    done = _train(folder, killed, kill_after=KILL_AFTER)
    _train(folder, killed, "--resume", "auto")
    losses, resumed = losses_by_step(whole), losses_by_step(killed)
    difference = largest_difference(losses, resumed)
    figures = {"losses": losses, "resumed": resumed, "killed_after": done, "difference": difference}
    if not difference <= LOSS_TOLERANCE[session.target]:
        raise RungFailed(f"{len(resumed)} of {len(losses)} steps, whose losses differ by {difference:.0e}", **figures)
    return f"killed after {done} of {len(losses)} steps and resumed: losses differ by {difference:.0e}", figures


def _train(folder: Path, output: Path, *flags: str, kill_after: int = 0) -> int:
    """Run train.py; returns the number of steps on record when it ended, or was killed after so many."""
    command = [sys.executable, str(REPOSITORY / "train.py"), "--config", str(folder / "config.json"), "--data_url",
               str(folder / "pictures"), "--train_url", str(output), *flags]  # fmt: skip
    log = folder / f"{output.name}.log"
    deadline = time.monotonic() + TIMEOUT
    with log.open("ab") as stream:
        process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
                                   start_new_session=True)  # fmt: skip
        try:
            while process.poll() is None:
                if kill_after and len(losses_by_step(output)) >= kill_after:
                    break
                if time.monotonic() > deadline:
                    raise RungFailed(f"train.py did not end within {TIMEOUT:.0f} s (log: {log})")
                time.sleep(0.02)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode and not kill_after:
        raise RungFailed(f"train.py ended with code {process.returncode}: {last_line(log)} (log: {log})")
    return len(losses_by_step(output))


def losses_by_step(output: Path) -> list[float]:
    """Losses that train.py has recorded so far, in order."""
    file = output / "metrics.jsonl"
    if not file.exists():
        return []
    whole_lines = file.read_text(encoding="utf-8").split("\n")[:-1]
    return [record["loss"] for record in map(json.loads, whole_lines) if record["kind"] == "train"]
