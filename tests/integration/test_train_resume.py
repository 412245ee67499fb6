"""A training killed at random steps and resumed is the training that was never stopped, to the last bit.

All but one of these trainings keep the compiled step from start to start (`compile_cache`).
"""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from focal.checkpoint.files import read_checkpoint
from focal.errors import printable
from tests.integration.jobs import job
from tests.integration.train_jobs import UPDATES_PER_EPOCH, command, losses, make_workplace, records

KILLS = 2


def same_state(one, other):
    """Every tensor of two checkpoints, compared bit by bit."""
    first, second = read_checkpoint(one), read_checkpoint(other)
    assert first.tensors.keys() == second.tensors.keys() and len(first.tensors) > 100
    different = [name for name in first.tensors if (first.tensors[name] != second.tensors[name]).any()]
    places = [{**checkpoint.meta["progress"], "training": 0} for checkpoint in (first, second)]
    return not different and places[0] == places[1]


@pytest.mark.slow
def test_killed_and_resumed_training_gives_the_same_losses(tmp_path):
    config = make_workplace(tmp_path, compile_cache=str(tmp_path / "cache"))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    with job(command(config, whole), tmp_path / "whole.log") as run:
        assert run.wait(300) == 0, run.output
    expected = losses(whole)
    total = 3 * UPDATES_PER_EPOCH
    assert len(expected) == total

    seed = int.from_bytes(os.urandom(4), "little")
    # Not in the last epoch: the job could be over before the signal reaches it.
    points = sorted(random.Random(seed).sample(range(1, total - UPDATES_PER_EPOCH), KILLS))
    print(f"\nkilled after updates {points} (seed {seed})")
    for number, point in enumerate(points):
        flags = {"resume": "auto", "save_steps": 1}
        with job(command(config, broken, **flags), tmp_path / f"broken_{number}.log") as run:
            run.wait_until(lambda at=point: len(losses(broken)) >= at, 300)
            os.kill(run.process.pid, signal.SIGKILL)
            assert run.wait(60) == -signal.SIGKILL
            run.end()
    with job(command(config, broken, resume="auto", save_steps=4), tmp_path / "last.log") as run:
        assert run.wait(300) == 0, run.output
        assert "resumed from" in run.output and "training step loaded from" in run.output

    print("never stopped:     ", expected)
    print("killed and resumed:", losses(broken))
    assert losses(broken) == expected
    assert records(broken, "val") == records(whole, "val")
    assert same_state(broken / "checkpoints" / "last.ckpt", whole / "checkpoints" / "last.ckpt")


@pytest.mark.slow
def test_ctrl_c_saves_and_a_named_checkpoint_resumes(tmp_path):
    """Accumulation, version 1 and another optimizer; stopped by Ctrl-C, then resumed by path into another folder.

    Each start compiles its step, as without `compile_cache`.
    """
    config = make_workplace(
        tmp_path, arch="focal_mini", expand_sizes=[1, 1], batch_size=2, accumulation_step=2, optimizer="lamb", epochs=2
    )  # 12 updates an epoch
    whole, stopped, resumed = tmp_path / "whole", tmp_path / "stopped", tmp_path / "resumed"
    with job(command(config, whole), tmp_path / "whole.log") as run:
        assert run.wait(300) == 0, run.output
    with job(command(config, stopped), tmp_path / "stopped.log") as run:
        run.wait_until(lambda: len(losses(stopped)) >= 2, 300)
        os.kill(run.process.pid, signal.SIGINT)
        assert run.wait(60) == 130
        assert "stopped (signal 2) at step" in run.output and "Traceback" not in run.output
    last = stopped / "checkpoints" / "last.ckpt"
    done = read_checkpoint(last).meta["progress"]["step"]
    assert done == len(losses(stopped)) < 24
    with job(command(config, resumed, resume=last), tmp_path / "resumed.log") as run:
        assert run.wait(300) == 0, run.output
    assert losses(stopped) + losses(resumed) == losses(whole)
    assert same_state(resumed / "checkpoints" / "last.ckpt", whole / "checkpoints" / "last.ckpt")


@pytest.mark.slow
def test_an_unreadable_image_in_val_costs_no_epoch(tmp_path):
    """The last epoch is saved before the error; repaired and resumed, it is the training that met no such image.

    Files and classes have names of any bytes.
    """
    config = make_workplace(tmp_path, epochs=1, compile_cache=str(tmp_path / "cache"))
    for split in ("train", "val"):
        folder = (tmp_path / "data" / split / "3").rename(tmp_path / "data" / split / 'it\'s "三"\n')
        for number, image in enumerate(sorted(folder.iterdir())):
            image.rename(folder / os.fsdecode(b"\xff \xe4\xb8\x89'\n%d.png" % number))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    with job(command(config, whole), tmp_path / "whole.log") as run:
        assert run.wait(300) == 0, run.output
    image = folder / os.fsdecode(b"\xff \xe4\xb8\x89'\n0.png")
    content = image.read_bytes()
    image.write_bytes(content[:40])
    with job(command(config, broken), tmp_path / "broken.log") as run:
        assert run.wait(300) == 2 and f"1 image(s) of val cannot be read ({printable(str(image))})" in run.output
        assert "Traceback" not in run.output, run.output
    assert read_checkpoint(broken / "checkpoints" / "last.ckpt").meta["progress"]["step"] == UPDATES_PER_EPOCH
    image.write_bytes(content)
    with job(command(config, broken, resume="auto"), tmp_path / "resumed.log") as run:
        assert run.wait(300) == 0, run.output
    assert losses(broken) == losses(whole) and records(broken, "val") == records(whole, "val")
    for name in ("checkpoints/last.ckpt", "best/best.ckpt"):
        assert same_state(broken / name, whole / name)


@pytest.mark.slow
def test_a_killed_data_worker_ends_the_job_and_resuming_gives_the_same_losses(tmp_path):
    """Killed while the training waits for its batch, where MindSpore alone would have it wait for ever."""
    config = make_workplace(
        tmp_path, worker_processes=True, batch_size=2, epochs=1, compile_cache=str(tmp_path / "cache")
    )
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    with job(command(config, whole), tmp_path / "whole.log") as run:
        assert run.wait(300) == 0, run.output
    with job(command(config, broken, save_steps=1), tmp_path / "broken.log") as run:
        run.wait_until(lambda: losses(broken), 300)
        worker = min(run.processes().keys() - {run.process.pid})
        os.kill(worker, signal.SIGSTOP)
        run.wait_until(lambda: waits(broken), 60)
        os.kill(worker, signal.SIGKILL)
        assert run.wait(60) == 75, run.output
        assert f"data worker {worker} was killed by signal 9, so a batch never comes" in run.output
        assert "Traceback" not in run.output and not run.left_behind(15), run.output
    assert 0 < len(losses(broken)) < len(losses(whole)) == 25
    with job(command(config, broken, resume="auto"), tmp_path / "resumed.log") as run:
        assert run.wait(300) == 0, run.output
    assert losses(broken) == losses(whole)


def waits(output):
    """Whether no update is done for three seconds."""
    done = len(losses(output))
    time.sleep(3)
    return len(losses(output)) == done
