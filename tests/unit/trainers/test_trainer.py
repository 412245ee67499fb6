"""The loop: when it saves, when it stops. Steps, data and evaluation are stand-ins; train.py itself runs elsewhere."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from mindspore import Tensor

from focal.checkpoint.resume import Progress
from focal.checkpoint.series import BestCheckpoints
from focal.distributed.device import Device
from focal.distributed.signals import StopSignals
from focal.errors import UserError
from focal.trainers import trainer as training_module
from focal.trainers.train_one_step import OUTPUTS
from focal.trainers.trainer import Outputs, Trainer

STEPS_PER_EPOCH = 4


class Recorder:
    """Takes the place of `LastCheckpoints`."""

    def __init__(self):
        self.saved = []

    def save(self, tensors, meta):
        self.saved.append((meta["progress"]["step"], meta["progress"]["micro_batches"]))
        return True


@pytest.fixture
def run(make_config, tmp_path, monkeypatch):
    """A training from `progress` on; returns what it saved, how many steps it took, and where it is."""
    monkeypatch.setattr(training_module, "compile_step", lambda *arguments: "compiled")
    monkeypatch.setattr(Trainer, "tensors", lambda self: {})
    monkeypatch.setattr(Trainer, "evaluate", lambda self: "")

    def run(progress=None, **keys):
        config = make_config(epochs=3, warmup_length=0, cool_length=0, **keys)
        steps, last = [], Recorder()

        def step(images, targets, drop_path):
            steps.append(1)
            return Tensor(np.zeros(len(OUTPUTS), np.float32))

        class Data:
            batches_per_epoch = STEPS_PER_EPOCH
            known_class_names = ("a", "b", "c", "d")

            def take_replaced(self):
                return 0

            def epoch(self, epoch, first):
                yield from ((np.zeros(1, np.float32),) * 3 for _ in range(first, STEPS_PER_EPOCH))

        metrics = SimpleNamespace(write=lambda *arguments: None)
        outputs = Outputs(metrics, last, BestCheckpoints(tmp_path, 1))
        progress = progress or Progress()
        training = Trainer(config, Device(), step, None, Data(), None, progress, outputs, StopSignals())
        assert training.run() == 0
        return last.saved, len(steps), progress

    return run


def test_a_checkpoint_is_saved_at_the_end_of_every_epoch(run):
    saved, steps, progress = run()
    assert saved == [(4, 0), (8, 0), (12, 0)] and steps == 12 and progress.epoch == 3


def test_save_steps_keeps_counting_where_an_epoch_ends(run):
    assert run(save_steps=4, save_every=3)[0] == [(4, 0), (8, 0), (12, 0)]
    assert run(save_steps=3, save_every=3)[0] == [(3, 3), (6, 2), (9, 1), (12, 0)]


def test_a_failed_evaluation_saves_the_epoch_first_and_is_made_up_for(run, monkeypatch):
    def fail(trainer):
        raise UserError("evaluation: 1 image(s) of val cannot be read")

    progress, saved, evaluated = Progress(), [], []
    with monkeypatch.context() as patch, pytest.raises(UserError, match="cannot be read"):
        patch.setattr(Trainer, "evaluate", fail)
        patch.setattr(Trainer, "save", lambda self: saved.append((self.progress.epoch, self.progress.micro_batches)))
        run(progress)
    assert saved == [(0, 4)]
    monkeypatch.setattr(Trainer, "evaluate", lambda self: evaluated.append(self.progress.epoch) or "")
    saved, steps, progress = run(progress)
    assert evaluated == [1, 2, 3] and saved == [(4, 0), (8, 0), (12, 0)] and steps == 8


def test_nothing_is_saved_twice(run):
    assert run(max_steps=4)[0] == [(4, 0)]
    assert run(max_steps=6, save_steps=2)[0] == [(2, 2), (4, 0), (6, 2)]


def test_max_steps_that_are_already_done_train_nothing(run):
    progress = Progress(epoch=1, step=4)
    saved, steps, after = run(progress, max_steps=4)
    assert (saved, steps) == ([], 0) and after == Progress(epoch=1, step=4)


def test_max_steps_counts_steps_not_micro_batches(run):
    saved, steps, progress = run(max_steps=3, accumulation_step=2)
    assert saved == [(2, 0), (3, 2)] and steps == 6 and progress.step == 3


def test_training_continues_in_the_middle_of_an_epoch(run):
    saved, steps, progress = run(Progress(epoch=2, micro_batches=3, step=11))
    assert saved == [(12, 0)] and steps == 1 and progress.epoch == 3
