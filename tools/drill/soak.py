"""Many epochs in one process: memory, open files and compilations must not grow."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.integration.jobs import REPOSITORY, job
from tests.integration.train_jobs import records
from tools.drill.outcome import Outcome

PATIENCE = 4 * 3600.0  # seconds
SETTLED = 3  # epochs after which memory may only wander
GROWTH = 0.05  # most that resident memory may grow from then on


def soak(folder: Path, epochs: int) -> Outcome:
    """Train the quickstart's network for `epochs` epochs; compare its end with its third epoch."""
    output = folder / "soak"
    make = [sys.executable, str(REPOSITORY / "scripts/make_digits.py"), str(folder / "digits")]
    with job(make, folder / "digits.log") as running:
        assert running.wait(PATIENCE) == 0, running.output
    train = [sys.executable, str(REPOSITORY / "train.py"), "--config", "configs/quickstart_digits.yaml"]
    train += [f"--data_url={folder / 'digits'}", f"--train_url={output}", f"--epochs={epochs}", "--report=False"]
    memory: list[float] = []  # MiB after each epoch
    handles: list[int] = []
    with job(train, folder / "soak.log") as running:
        process = Path(f"/proc/{running.process.pid}")
        for epoch in range(1, epochs):  # after the last one the process ends
            running.wait_until(lambda done=epoch: len(records(output, "val")) >= done, PATIENCE)
            memory.append(_resident(process))
            handles.append(len(list((process / "fd").iterdir())))
        code = running.wait(PATIENCE)
        compilations = running.output.count("training step compiled")
    growth = memory[-1] / memory[SETTLED - 1] - 1
    seen = f"{memory[SETTLED - 1]:.0f} MiB after epoch {SETTLED}, {memory[-1]:.0f} MiB after epoch {epochs - 1} "
    seen += f"({100 * growth:+.1f} %); {handles[SETTLED - 1]} and {handles[-1]} open files; {compilations} compilation"
    held = code == 0 and growth <= GROWTH and handles[-1] <= handles[SETTLED - 1] and compilations == 1
    return Outcome("a long training", f"{epochs} epochs in one process", seen, held)


def _resident(process: Path) -> float:
    line = next(line for line in (process / "status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024
