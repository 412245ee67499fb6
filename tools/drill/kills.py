"""SIGKILL at random moments: of the job, of a rank, of a data worker, of the launcher."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from focal.checkpoint.series import LastCheckpoints
from tests.integration.jobs import Job, job
from tests.integration.train_jobs import command, losses, make_workplace
from tools.drill.outcome import Outcome

PATIENCE = 600.0  # seconds for a start, on a machine that others use as well
EPOCHS = 12
SETTINGS = {"device_num": 2, "batch_size": 4, "eval_batch_size": 4, "worker_processes": True, "save_steps": 2}


def _everything(running: Job) -> list[int]:
    return list(running.processes())


def _launcher(running: Job) -> list[int]:
    return [running.process.pid]


def _rank(running: Job) -> list[int]:
    return [running.pid_of(random.choice(("rank 0", "rank 1")))]


def _data_worker(running: Job) -> list[int]:
    found: list[int] = []

    def alive() -> bool:  # between two epochs there are none
        ranks = {pid for pid, role in running.processes().items() if role.startswith("rank")}
        found[:] = [pid for pid in ranks if _parent(pid) in ranks]
        return bool(found)

    running.wait_until(alive, PATIENCE)
    return [random.choice(found)]


def _parent(pid: int) -> int:
    """The process that started this one; 0 if it has just ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0


VICTIMS: dict[str, Callable[[Job], list[int]]] = {
    "the whole job": _everything,
    "one rank": _rank,
    "a data worker": _data_worker,
    "the launcher": _launcher,
}


def kill_at_random(folder: Path, victim: str, times: int, expected: Sequence[float]) -> Outcome:
    """Kill a training `times` times at random moments, resume it each time, and let it end.

    Args:
        folder: where the training's folder and logs are made.
        victim: a key of `VICTIMS`.
        times: how often.
        expected: the losses of the same training without a disturbance.
    """
    config, output = make_workplace(folder, epochs=EPOCHS), folder / victim.replace(" ", "_")
    faults: list[str] = []
    saved_before, slowest_end = -1, 0.0
    for number in range(times):
        with job(command(config, output, resume="auto", **SETTINGS), folder / f"{output.name}_{number}.log") as running:
            # Within the first updates after the start, so that all kills fit into the training.
            start = len(losses(output))
            goal = start + random.randint(1, max(1, (len(expected) - start) // (times - number + 1)))
            running.wait_until(lambda goal=goal: len(losses(output)) >= goal, PATIENCE)
            killed = time.monotonic()
            for pid in VICTIMS[victim](running):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            code = running.wait(120)
            slowest_end = max(slowest_end, time.monotonic() - killed)
            if code == 0:
                faults.append(f"exit code 0 after kill {number + 1}")
            if running.left_behind(30):
                faults.append(f"left running after kill {number + 1}: {running.left_behind(0)}")
        newest = LastCheckpoints(output / "checkpoints", 2).newest()
        saved = -1 if newest is None else int(newest.tensors["optimizer.step"])
        if saved < saved_before:
            faults.append(f"kill {number + 1} lost the checkpoint of update {saved_before}")
        saved_before = saved
    faults += _finish(config, output, folder, expected)
    ended = f"each job ended within {slowest_end:.0f} s, all {len(expected)} losses equal the undisturbed"
    return Outcome(f"SIGKILL of {victim}", f"{times} times at random moments", "; ".join(faults) or ended, not faults)


def _finish(config: Path, output: Path, folder: Path, expected: Sequence[float]) -> list[str]:
    with job(command(config, output, resume="auto", **SETTINGS), folder / f"{output.name}_last.log") as running:
        if running.wait(PATIENCE):
            return [f"the last resume failed: {running.output.splitlines()[-1]}"]
    if losses(output) != list(expected):
        return ["the losses differ from those of the undisturbed training"]
    return []


def undisturbed(folder: Path) -> list[float]:
    """The losses of the training that nothing disturbs."""
    config = make_workplace(folder, epochs=EPOCHS)
    with job(command(config, folder / "undisturbed", **SETTINGS), folder / "undisturbed.log") as running:
        assert running.wait(PATIENCE) == 0, running.output
    return losses(folder / "undisturbed")
