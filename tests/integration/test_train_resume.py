"""A training killed at random steps and resumed is the training that was never stopped, to the last bit.

All but one of these trainings load the step that the undisturbed one has compiled (`compile_cache`).
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
ONE_BLOCK = {"depths": [1], "num_heads": [1], "focal_stages": [0], "focal_levels": [2], "focal_windows": [3]}
ACCUMULATING_UPDATES = 24  # of `accumulating`


def same_state(one, other):
    """Every tensor of two checkpoints, compared bit by bit."""
    first, second = read_checkpoint(one), read_checkpoint(other)
    assert first.tensors.keys() == second.tensors.keys() and len(first.tensors) > 100
    different = [name for name in first.tensors if (first.tensors[name] != second.tensors[name]).any()]
    places = [{**checkpoint.meta["progress"], "training": 0} for checkpoint in (first, second)]
    return not different and places[0] == places[1]


def run_to_the_end(line, log):
    with job(line, log) as run:
        assert run.wait(300) == 0, run.output
    return run.output


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The configuration of a training, and in `whole` beside it that training, never stopped.

    Files and classes have names of any bytes.
    """
    folder = tmp_path_factory.mktemp("undisturbed")
    config = make_workplace(folder, compile_cache=str(folder / "cache"))
    for split in ("train", "val"):
        images = (folder / "data" / split / "3").rename(folder / "data" / split / 'it\'s "三"\n')
        for number, image in enumerate(sorted(images.iterdir())):
            image.rename(images / os.fsdecode(b"\xff \xe4\xb8\x89'\n%d.png" % number))
    run_to_the_end(command(config, folder / "whole"), folder / "whole.log")
    assert len(losses(folder / "whole")) == 3 * UPDATES_PER_EPOCH
    return config


@pytest.fixture(scope="module")
def accumulating(tmp_path_factory):
    """The same of another training: accumulation, version 1 and another optimizer; one block. 12 updates an epoch."""
    folder = tmp_path_factory.mktemp("accumulating")
    recipe = {"batch_size": 2, "accumulation_step": 2, "optimizer": "lamb", "epochs": 2, "expand_sizes": [1]}
    config = make_workplace(folder, arch="focal_mini", compile_cache=str(folder / "cache"), **ONE_BLOCK, **recipe)
    run_to_the_end(command(config, folder / "whole"), folder / "whole.log")
    assert len(losses(folder / "whole")) == ACCUMULATING_UPDATES
    return config


@pytest.mark.slow
def test_killed_and_resumed_training_gives_the_same_losses(undisturbed, tmp_path):
    whole, broken = undisturbed.parent / "whole", tmp_path / "broken"
    expected = losses(whole)
    seed = int.from_bytes(os.urandom(4), "little")
    # Not in the last epoch: the job could be over before the signal reaches it.
    points = sorted(random.Random(seed).sample(range(1, len(expected) - UPDATES_PER_EPOCH), KILLS))
    print(f"\nkilled after updates {points} (seed {seed})")
    for number, point in enumerate(points):
        flags = {"resume": "auto", "save_steps": 1}
        with job(command(undisturbed, broken, **flags), tmp_path / f"broken_{number}.log") as run:
            run.wait_until(lambda at=point: len(losses(broken)) >= at, 300)
            os.kill(run.process.pid, signal.SIGKILL)
            assert run.wait(60) == -signal.SIGKILL
            run.end()
    output = run_to_the_end(command(undisturbed, broken, resume="auto", save_steps=4), tmp_path / "last.log")
    assert "resumed from" in output and "training step loaded from" in output

    print("never stopped:     ", expected)
    print("killed and resumed:", losses(broken))
    assert losses(broken) == expected
    assert records(broken, "val") == records(whole, "val")
    assert same_state(broken / "checkpoints" / "last.ckpt", whole / "checkpoints" / "last.ckpt")


@pytest.mark.slow
def test_an_unreadable_image_in_val_costs_no_epoch(undisturbed, tmp_path):
    """The epoch is saved before the error; repaired and resumed, it is the training that met no such image."""
    whole, broken = undisturbed.parent / "whole", tmp_path / "broken"
    image = next((undisturbed.parent / "data" / "val").glob("it's*/*0.png"))
    content = image.read_bytes()
    image.write_bytes(content[:40])
    with job(command(undisturbed, broken), tmp_path / "broken.log") as run:
        assert run.wait(300) == 2 and f"1 image(s) of val cannot be read ({printable(str(image))})" in run.output
        assert "Traceback" not in run.output, run.output
    assert read_checkpoint(broken / "checkpoints" / "last.ckpt").meta["progress"]["step"] == UPDATES_PER_EPOCH
    image.write_bytes(content)
    run_to_the_end(command(undisturbed, broken, resume="auto"), tmp_path / "resumed.log")
    assert losses(broken) == losses(whole) and records(broken, "val") == records(whole, "val")
    for name in ("checkpoints/last.ckpt", "best/best.ckpt"):
        assert same_state(broken / name, whole / name)


@pytest.mark.slow
def test_ctrl_c_saves_and_a_named_checkpoint_resumes(accumulating, tmp_path):
    """Stopped by Ctrl-C, then resumed by path into another folder; there the step is compiled, as by default."""
    whole, stopped, resumed = accumulating.parent / "whole", tmp_path / "stopped", tmp_path / "resumed"
    with job(command(accumulating, stopped), tmp_path / "stopped.log") as run:
        run.wait_until(lambda: len(losses(stopped)) >= 2, 300)
        os.kill(run.process.pid, signal.SIGINT)
        assert run.wait(60) == 130
        assert "stopped (signal 2) at step" in run.output and "Traceback" not in run.output
    last = stopped / "checkpoints" / "last.ckpt"
    done = read_checkpoint(last).meta["progress"]["step"]
    assert done == len(losses(stopped)) < ACCUMULATING_UPDATES
    output = run_to_the_end(command(accumulating, resumed, resume=last, compile_cache="null"), tmp_path / "resumed.log")
    assert "training step compiled" in output
    assert losses(stopped) + losses(resumed) == losses(whole)
    assert same_state(resumed / "checkpoints" / "last.ckpt", whole / "checkpoints" / "last.ckpt")


@pytest.mark.slow
def test_a_killed_data_worker_ends_the_job_and_resuming_gives_the_same_losses(accumulating, tmp_path):
    """Killed while the training waits for its batch, where MindSpore alone would have it wait for ever.

    The training that it is compared with read its data by threads.
    """
    whole, broken = accumulating.parent / "whole", tmp_path / "broken"
    flags = {"worker_processes": True}
    with job(command(accumulating, broken, save_steps=1, **flags), tmp_path / "broken.log") as run:
        run.wait_until(lambda: losses(broken), 300)
        worker = min(run.processes().keys() - {run.process.pid})
        os.kill(worker, signal.SIGSTOP)
        run.wait_until(lambda: waits(broken), 60)
        os.kill(worker, signal.SIGKILL)
        assert run.wait(60) == 75, run.output
        assert f"data worker {worker} was killed by signal 9, so a batch never comes" in run.output
        assert "Traceback" not in run.output and not run.left_behind(15), run.output
    assert 0 < len(losses(broken)) < ACCUMULATING_UPDATES / 2, "it waited for a batch, not for the first evaluation"
    run_to_the_end(command(accumulating, broken, resume="auto", **flags), tmp_path / "resumed.log")
    assert losses(broken) == losses(whole)


def waits(output):
    """Whether no update is done for three seconds."""
    done = len(losses(output))
    time.sleep(3)
    return len(losses(output)) == done
