"""Means over steps, their speed, what is fetched when, and the stop on divergence."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from mindspore import Tensor

from focal.checkpoint.resume import Progress
from focal.distributed.device import Device
from focal.trainers.train_one_step import StepOutputs
from focal.trainers.training_log import (
    DivergenceGuard,
    Summary,
    TrainingDiverged,
    TrainingLog,
    describe,
    format_duration,
)


def row(loss=1.0, norm=2.0, lr=0.1, scale=8.0, nonfinite=0.0, in_a_row=0.0):
    return np.array(StepOutputs(1.0, loss, norm, lr, scale, nonfinite, in_a_row))


class Records:
    """Takes the place of `MetricsFiles`."""

    def __init__(self):
        self.written = []

    def write(self, kind, update, epoch, values):
        self.written.append((kind, update, epoch, values["updates"], values["loss"]))


def test_steps_are_recorded_every_log_steps_and_at_the_end_of_an_epoch(make_config):
    records, progress = Records(), Progress()
    log = TrainingLog(make_config(log_steps=2), Device(), records, steps_per_epoch=5)
    for step in range(1, 6):
        progress.step = progress.micro_batches = step
        log.step(Tensor(row(loss=step).astype(np.float32)), progress)
    figures = log.take_epoch(progress)
    assert records.written == [("train", 2, 0.4, 2, 1.5), ("train", 4, 0.8, 2, 3.5), ("train", 5, 1.0, 1, 5.0)]
    assert (figures["updates"], figures["loss"]) == (5, 3.0)
    assert progress.last_good_step == 5


def test_outputs_stay_on_the_device_until_a_line_is_due(make_config):
    log, progress = TrainingLog(make_config(log_steps=50), Device(), None, steps_per_epoch=100), Progress()
    waiting = []
    for step in range(1, 50):
        progress.step = progress.micro_batches = step
        log.step(Tensor(row().astype(np.float32)), progress)
        waiting.append(len(log.pending))
    assert waiting == [0, *range(1, 49)]  # the first step of a process is looked at at once
    log.fetch(progress)
    assert log.pending == []


def test_the_summary_leaves_non_finite_steps_out_of_the_means():
    summary = Summary(images_per_step=10)
    summary.add(np.array([row(loss=1), row(loss=np.nan, norm=np.inf, nonfinite=1, in_a_row=1), row(loss=2, norm=5)]))
    figures = summary.take()
    assert (figures["loss"], figures["grad_norm"], figures["nonfinite"], figures["updates"]) == (1.5, 5.0, 1, 3)
    assert summary.take() is None
    summary.add(np.array([row(loss=np.nan, nonfinite=1)]))
    assert summary.take()["loss"] is None


def test_the_summary_times_only_steps_after_the_clock_was_restarted(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("focal.trainers.training_log.time.monotonic", lambda: now[0])
    summary = Summary(images_per_step=10)
    now[0] = 150.0  # compilation
    summary.add(np.array([row()]))
    summary.restart_clock()
    now[0] = 152.0
    summary.add(np.array([row(), row()]))
    figures = summary.take()
    assert (figures["updates"], figures["images_per_second"]) == (3, 10.0)


@pytest.fixture
def clock(monkeypatch):
    """The time that training_log reads, which passes only when a test says so."""
    now = [100.0]
    monkeypatch.setattr("focal.trainers.training_log.time.monotonic", lambda: now[0])
    return now


def test_the_time_until_a_batch_is_there_is_waiting_for_data(make_config, clock):
    log = TrainingLog(make_config(log_steps=2), Device(), None, steps_per_epoch=4)

    def slow_batches():
        for batch in "abc":
            clock[0] += 3
            yield batch

    taken = []
    log.line.restart_clock()
    for batch in log.timed(slow_batches()):
        taken.append(batch)
        clock[0] += 1  # the step
        log.line.add(np.array([row()]))
    assert taken == ["a", "b", "c"]
    assert log.line.take()["data_wait"] == 9 / 12
    log.line.add(np.array([row()]))
    clock[0] += 5
    assert log.line.take()["data_wait"] == 0, "each line has its own"


def test_waiting_is_not_known_where_batches_come_from_the_devices_queue(clock):
    summary = Summary(images_per_step=10)
    clock[0] += 1
    summary.add(np.array([row()]))
    figures = summary.take()
    assert figures["data_wait"] is None and figures["images_per_second"] == 10
    assert "waiting" not in describe(figures)


def test_a_line_has_all_figures_and_the_time_left(make_config, clock, caplog):
    caplog.set_level(logging.INFO, logger="focal")
    config, progress = make_config(log_steps=2, epochs=3, batch_size=10, warmup_length=0, cool_length=0), Progress()
    log = TrainingLog(config, Device(), Records(), steps_per_epoch=10)
    log.evaluation_seconds = 100.0
    for step in range(1, 5):
        clock[0] += 20
        progress.step = progress.micro_batches = step
        log.step(Tensor(row(loss=1.5, norm=2.25, lr=0.001, scale=1024).astype(np.float32)), progress)
    line = caplog.messages[-1]
    assert line.startswith(
        "epoch 0.40, step 4: loss 1.5000, lr 1.000e-03, gradient norm 2.25, scale 1024, 0.5 images/s"
    )
    assert line.endswith(", 0:02:00 of the epoch and 0:13:40 left"), "6 steps; 26 steps and 3 evaluations"


def test_training_stops_with_a_report_after_n_non_finite_steps_in_a_row(caplog):
    logging.getLogger("focal").propagate = True
    guard = DivergenceGuard(3)
    guard.check(
        np.array([row(loss=0.5), row(nonfinite=1, in_a_row=1), row(nonfinite=1, in_a_row=2), row(loss=0.25)]), 1
    )
    guard.check(np.array([row(nonfinite=1, in_a_row=1, norm=np.nan, scale=4), row(nonfinite=1, in_a_row=2)]), 5)
    with pytest.raises(TrainingDiverged, match="3 non-finite steps in a row, the last good one: step 4"):
        guard.check(np.array([row(nonfinite=1, in_a_row=3)]), 7)
    assert "0.25" in caplog.text and "(good)" in caplog.text and "nan" in caplog.text


@pytest.mark.parametrize("seconds, text", [(59, "0:00:59"), (3661, "1:01:01"), (2 * 86400 + 5, "2 d 0:00:05")])
def test_durations_are_written_in_hours_and_days(seconds, text):
    assert format_duration(seconds) == text
