"""Resuming: which checkpoint, and what becomes of other results in the folder."""

from __future__ import annotations

import pytest

from focal.checkpoint.files import write_checkpoint
from focal.checkpoint.resume import Progress, make_meta
from focal.checkpoint.train_state import collect_tensors
from focal.config import ConfigError
from focal.distributed.device import Device
from focal.trainers.setup import resume_state


def write(path, config, step, update):
    progress = Progress(epoch=1, step=update, training=77)
    write_checkpoint(path, collect_tensors(step.state(), 1), make_meta(config, progress, 1, 10))


def test_results_of_another_training_are_set_aside_once_the_checkpoint_is_accepted(make_config, make_step, tmp_path):
    config = make_config()
    step = make_step(config)
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere" / "last.ckpt"
    write(out / "checkpoints" / "last.ckpt", config, step, 250)
    write(elsewhere, config, step, 10)

    other = make_config(resume=str(elsewhere), base_lr=1e-3)
    with pytest.raises(ConfigError, match="base_lr"):
        resume_state(other, make_step(other), 10, Device(), str(out))
    assert [path.name for path in out.iterdir()] == ["checkpoints"]  # refused: nothing has moved

    own = make_config(resume=str(out / "checkpoints" / "last.ckpt"))
    assert resume_state(own, step, 10, Device(), str(out)).step == 250
    assert resume_state(make_config(resume="auto"), step, 10, Device(), str(out)).step == 250
    assert [path.name for path in out.iterdir()] == ["checkpoints"]

    resumed = resume_state(make_config(resume=str(elsewhere)), step, 10, Device(), str(out))
    assert (resumed.step, resumed.training) == (10, 77)
    assert [path.name for path in out.iterdir()] == ["earlier-1"]


def test_every_new_training_has_a_number_of_its_own(make_config, make_step, tmp_path):
    config = make_config()
    numbers = {resume_state(config, make_step(config), 10, Device(), str(tmp_path)).training for _ in range(3)}
    assert len(numbers) == 3 and all(0 < number < 2**24 for number in numbers)
