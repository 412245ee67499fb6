"""The loop: when it saves, when it stops. Steps, data and evaluation are stand-ins; train.py itself runs elsewhere."""

from __future__ import annotations

import itertools
import logging
import re
import time
from types import SimpleNamespace

import numpy as np
import pytest
from mindspore import Tensor

from focal.checkpoint.resume import Progress
from focal.checkpoint.series import BestCheckpoints, LastCheckpoints
from focal.distributed.device import Device
from focal.distributed.signals import StopSignals
from focal.errors import NOT_SAVED, UserError
from focal.trainers import trainer as training_module
from focal.trainers.train_one_step import OUTPUTS
from focal.trainers.trainer import Outputs, Trainer

STEPS_PER_EPOCH = 4


class Recorder(LastCheckpoints):
    """Takes the place of `LastCheckpoints`; the disk is full from step `full` on."""

    def __init__(self, folder, full):
        super().__init__(folder, 1)
        self.saved, self.full = [], full

    def save(self, tensors, meta):
        if meta["progress"]["step"] >= self.full:
            return False
        self.saved.append((meta["progress"]["step"], meta["progress"]["micro_batches"]))
        self.path(0).write_text("a checkpoint")
        return True


@pytest.fixture
def run(make_config, tmp_path, monkeypatch):
    """A training from `progress` on; returns what it saved, how many steps it took, and where it is."""
    monkeypatch.setattr(training_module, "compile_step", lambda *arguments: "compiled")
    monkeypatch.setattr(Trainer, "tensors", lambda self: {})
    monkeypatch.setattr(Trainer, "evaluate", lambda self: "")

    def run(progress=None, full=10**9, exit_code=0, lost=None, **keys):
        config = make_config(epochs=3, warmup_length=0, cool_length=0, **keys)
        steps, last, best = [], Recorder(tmp_path, full), BestCheckpoints(tmp_path, 1)
        best.lost = lost

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
        outputs = Outputs(metrics, last, best)
        progress = progress or Progress()
        training = Trainer(config, Device(), step, None, Data(), None, progress, outputs, StopSignals())
        assert training.run() == exit_code
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


def test_a_finished_training_that_is_resumed_succeeds_without_doing_anything(run, caplog):
    caplog.set_level(logging.INFO, logger="focal")
    saved, steps, after = run(Progress(epoch=3, step=12))
    assert (saved, steps) == ([], 0) and after == Progress(epoch=3, step=12)
    assert caplog.records[-1].getMessage() == "nothing to do: all 3 epochs are done"


def test_the_missing_evaluation_of_the_last_epoch_is_made_up_for(run, monkeypatch):
    evaluated = []
    monkeypatch.setattr(Trainer, "evaluate", lambda self: evaluated.append(self.progress.epoch) or "")
    monkeypatch.setattr(Trainer, "prepare", lambda self: pytest.fail("there is nothing to train"))
    saved, steps, after = run(Progress(epoch=2, micro_batches=4, step=12))
    assert evaluated == [3] and saved == [(12, 0)] and steps == 0 and after.epoch == 3


def test_max_steps_counts_steps_not_micro_batches(run):
    saved, steps, progress = run(max_steps=3, accumulation_step=2)
    assert saved == [(2, 0), (3, 2)] and steps == 6 and progress.step == 3


def test_training_continues_in_the_middle_of_an_epoch(run):
    saved, steps, progress = run(Progress(epoch=2, micro_batches=3, step=11))
    assert saved == [(12, 0)] and steps == 1 and progress.epoch == 3


@pytest.mark.parametrize(
    "keys, saved, said",
    [
        ({"full": 1}, [], "there is no "),
        ({"full": 9}, [(4, 0), (8, 0)], "last.ckpt holds step 8, not step 12; make room, then --resume auto"),
        ({"full": 5, "max_steps": 6}, [(4, 0)], "last.ckpt holds step 4, not step 6"),
        (
            {"lost": 75.0},
            [(4, 0), (8, 0), (12, 0)],
            "lacks the best weights, of top-1 75.00 %; use last.ckpt, or make room and --resume an earlier checkpoint",
        ),
    ],
)
def test_what_could_not_be_saved_decides_the_exit_code_and_is_the_last_thing_said(run, caplog, keys, saved, said):
    assert run(exit_code=NOT_SAVED, **keys)[0] == saved
    last_line = caplog.records[-1].getMessage()
    assert last_line.startswith("NOT SAVED: ") and said in last_line


def test_a_disk_that_has_room_again_in_time_is_no_failure(run, monkeypatch):
    real = Recorder.save
    monkeypatch.setattr(Recorder, "save", lambda *given: given[2]["progress"]["epoch"] != 2 and real(*given))
    assert run()[0] == [(4, 0), (12, 0)]


def test_a_clock_that_is_set_back_changes_no_duration(run, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="focal")
    hours = itertools.count(10**6, -1)
    monkeypatch.setattr(time, "time", lambda: 3600.0 * next(hours))
    run(log_steps=1)
    assert re.search(r"training step compiled in 0:0\d:\d\d$", caplog.text, re.MULTILINE)
    assert re.search(r"first step done after \d+ s", caplog.text)
    speeds = [float(speed) for speed in re.findall(r"(\S+) images/s", caplog.text)]
    assert len(speeds) > 5 and min(speeds) > 1
