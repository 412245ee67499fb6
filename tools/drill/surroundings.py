"""What surrounds a training goes wrong: disk, rights, open files, environment, clock, a second training."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Optional

from focal.checkpoint.files import CheckpointError, read_checkpoint
from tests.integration.jobs import REPOSITORY, job
from tests.integration.train_jobs import command, losses, make_workplace
from tools.drill.outcome import Outcome

PATIENCE = 600.0  # seconds
NOBODY = 65534

CLOCK_GOING_BACK = """
import time
_true, _start = time.time, time.time()
time.time = lambda: _start - (_true() - _start)
"""


def second_training(folder: Path) -> Outcome:
    config, output = make_workplace(folder), folder / "two_at_once"
    with job(command(config, output), folder / "first.log") as first:
        first.wait_until(lambda: len(losses(output)) >= 1, PATIENCE)
        with job(command(config, output), folder / "second.log") as second:
            code, said = second.wait(PATIENCE), _last_line(second.output)
        first_code = first.wait(PATIENCE)
    refused = code != 0 and str(first.process.pid) in said
    held = refused and first_code == 0 and losses(output) == _expected(folder)
    return Outcome("a second training in one train_url", "started while the first ran", said, held)


def full_disk(folder: Path) -> Outcome:
    name, how = "disk full", "a tmpfs is filled after the first checkpoint, and emptied before the resume"
    with _small_disk(folder / "full", "8m") as disk:
        if disk is None:
            return Outcome(name, how, "mounting a tmpfs needs root", None)
        config, output = make_workplace(folder), disk / "output"
        newest = output / "checkpoints" / "last.ckpt"
        with job(command(config, output, save_steps=1), folder / "full.log") as running:
            running.wait_until(newest.exists, PATIENCE)
            with contextlib.suppress(OSError), open(disk / "filler", "wb", buffering=0) as filler:
                while True:
                    filler.write(bytes(4096))
            code, said = running.wait(PATIENCE), _last_line(running.output)
            clear = "NOT SAVED" in said and "Traceback" not in running.output
        whole = _is_whole(newest)
        (disk / "filler").unlink()
        with job(command(config, output, resume="auto"), folder / "emptied.log") as running:
            resumed = running.wait(PATIENCE) == 0 and losses(output) == _expected(folder)
    happened = f"exit code {code}: {said}; last.ckpt is {'whole' if whole else 'damaged'}"
    happened += ", and the resumed losses are the undisturbed" if resumed else ", but the resumed losses differ"
    return Outcome(name, how, happened, code != 0 and clear and whole and resumed)


def read_only_disk(folder: Path) -> Outcome:
    name, how = "output that cannot be written", "train_url on a disk mounted read-only"
    with _small_disk(folder / "read_only", "1m", read_only=True) as disk:
        if disk is None:
            return Outcome(name, how, "mounting a tmpfs needs root", None)
        with job(command(make_workplace(folder), disk / "output"), folder / "read_only.log") as running:
            code, said = running.wait(PATIENCE), _last_line(running.output)
            return Outcome(name, how, said, code != 0 and said.startswith("error:") and str(disk) in said)


def few_handles(folder: Path) -> Outcome:
    line = ["bash", "-c", 'ulimit -n 64; exec "$@"', "bash"]
    return _same_training(folder, "few file handles", "ulimit -n 64", line)


def bare_environment(folder: Path) -> Outcome:
    line = ["env", "-u", "HOME", "-u", "USER", "-u", "LANG", "LC_ALL=C"]
    return _same_training(folder, "no HOME and no locale", " ".join(line), line)


def backward_clock(folder: Path) -> Outcome:
    (folder / "clock").mkdir(exist_ok=True)
    (folder / "clock" / "sitecustomize.py").write_text(CLOCK_GOING_BACK)
    line = ["env", f"PYTHONPATH={folder / 'clock'}"]
    return _same_training(folder, "a clock that goes back", "time.time runs backwards", line)


def another_user(folder: Path) -> Outcome:
    name, how = "a folder of another user", "train.py as nobody, train_url owned by root"
    if os.getuid() or not shutil.which("setpriv"):
        return Outcome(name, how, "changing the user needs root and setpriv", None)
    output = folder / "of_root"
    output.mkdir(mode=0o755, exist_ok=True)
    os.chmod(folder, 0o755)
    line = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    probe = subprocess.run([*line, "test", "-r", str(REPOSITORY / "train.py")], check=False)
    if probe.returncode:
        return Outcome(name, how, "nobody may not read this repository", None)
    with job([*line, *command(make_workplace(folder), output)], folder / "of_root.log") as running:
        code, said = running.wait(PATIENCE), _last_line(running.output)
    return Outcome(name, how, said, code != 0 and said.startswith("error:") and str(output) in said)


def cut_checkpoint(folder: Path) -> Outcome:
    config, output = make_workplace(folder), folder / "cut"
    with job(command(config, output, save_steps=2, max_steps=8), folder / "cut.log") as running:
        assert running.wait(PATIENCE) == 0, running.output
    newest = output / "checkpoints" / "last.ckpt"
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    with job(command(config, output, resume="auto"), folder / "cut_on.log") as running:
        code = running.wait(PATIENCE)
        older = "resumed from" in running.output and "last.1.ckpt" in running.output
    same = losses(output) == _expected(folder)
    seen = "resumed from last.1.ckpt" if older else "did not resume from last.1.ckpt"
    seen += ", the losses equal the undisturbed" if same else ", the losses differ"
    return Outcome("a damaged newest checkpoint", "last.ckpt cut in half", seen, code == 0 and older and same)


FAULTS: Sequence[Callable[[Path], Outcome]] = (
    second_training,
    full_disk,
    read_only_disk,
    few_handles,
    bare_environment,
    backward_clock,
    another_user,
    cut_checkpoint,
)


def _same_training(folder: Path, fault: str, injected: str, prefix: Sequence[str]) -> Outcome:
    """Hold a training started through `prefix` against the undisturbed one."""
    name = fault.replace(" ", "_")
    with job([*prefix, *command(make_workplace(folder), folder / name)], folder / f"{name}.log") as running:
        code = running.wait(PATIENCE)
        if code:
            return Outcome(fault, injected, f"exit code {code}: {_last_line(running.output)}", False)
    same = losses(folder / name) == _expected(folder)
    seen = "trained on, the losses equal the undisturbed" if same else "trained on, but the losses differ"
    return Outcome(fault, injected, seen, same)


def _expected(folder: Path) -> list[float]:
    """The losses of the training that nothing disturbs; trained once per folder."""
    output = folder / "alone"
    if not output.exists():
        with job(command(make_workplace(folder), output), folder / "alone.log") as running:
            assert running.wait(PATIENCE) == 0, running.output
    return losses(output)


@contextlib.contextmanager
def _small_disk(place: Path, size: str, read_only: bool = False) -> Iterator[Optional[Path]]:
    """A tmpfs mounted at `place`; None where mounting is not allowed."""
    place.mkdir()
    options = f"size={size}" + (",ro" if read_only else "")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True)
    try:
        yield None if mounted.returncode else place
    finally:
        if not mounted.returncode:
            subprocess.run(["umount", str(place)], check=True)


def _is_whole(path: Path) -> bool:
    try:
        return read_checkpoint(path).meta is not None
    except CheckpointError:
        return False


def _last_line(output: str) -> str:
    lines = output.strip().splitlines()
    return lines[-1].strip() if lines else "nothing was said"
