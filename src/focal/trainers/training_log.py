"""Logs the progress of a training, and stops it if it diverges."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from typing import Any, Optional, TypeVar

import numpy as np
from mindspore import Tensor

from focal.checkpoint.resume import Progress
from focal.config import Config
from focal.distributed.device import Device
from focal.errors import UserError
from focal.trainers.metrics import MetricsFiles
from focal.trainers.progress_bar import ProgressBar
from focal.trainers.train_one_step import OUTPUTS, StepOutputs

logger = logging.getLogger("focal")

T = TypeVar("T")


class TrainingDiverged(UserError):
    """Too many non-finite steps in a row."""


class TrainingLog:
    """Takes the outputs of each step; writes a record and a line every `log_steps`, and a line per epoch.

    On a terminal a bar shows the steps between the lines.

    Outputs stay on the device until they are needed, because fetching them waits for the device.

    Args:
        device: this process; all ranks look for divergence, rank 0 alone writes.
        metrics: where records go, on rank 0.
        steps_per_epoch: of one rank.
    """

    def __init__(self, config: Config, device: Device, metrics: Optional[MetricsFiles], steps_per_epoch: int) -> None:
        self.log_steps, self.epochs = config.run.log_steps, config.optim.epochs
        self.micro_batches_per_step = config.step.accumulation_step
        self.eval_every = config.run.eval_every
        self.metrics = metrics
        self.micro_batches_per_epoch = steps_per_epoch * config.step.accumulation_step
        self.images_per_step = config.data.batch_size * device.world_size * config.step.accumulation_step
        self.images_per_epoch = steps_per_epoch * self.images_per_step
        self.line, self.epoch = Summary(self.images_per_step), Summary(self.images_per_step)
        self.guard = DivergenceGuard(config.step.max_nonfinite_steps, report=device.is_main)
        self.pending: list[Tensor] = []
        self.evaluation_seconds = 0.0
        self.started = time.monotonic()
        self.first_step: Optional[int] = None  # of this process
        self.bar = ProgressBar(wanted=device.is_main)

    def start_epoch(self, progress: Progress) -> None:
        """Show a bar for the epoch that `progress` is in."""
        steps, done = (
            micro_batches // self.micro_batches_per_step
            for micro_batches in (self.micro_batches_per_epoch, progress.micro_batches)
        )
        self.bar.start(f"epoch {progress.epoch + 1}/{self.epochs}", steps, done)

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """The same batches; the time until each is there counts as waiting for data."""
        iterator = iter(batches)
        while True:
            start = time.monotonic()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            seconds = time.monotonic() - start
            self.line.wait(seconds)
            self.epoch.wait(seconds)
            yield batch

    def step(self, outputs: Tensor, progress: Progress) -> None:
        """Take the outputs of the step that `progress` has just counted.

        Raises:
            TrainingDiverged: see `DivergenceGuard`.
        """
        self.pending.append(outputs)
        self.bar.advance()
        if self.first_step is None:
            self.first_step = progress.step
            self.fetch(progress)
            logger.info("first step done after %.0f s, compilation included", time.monotonic() - self.started)
            self.restart_clock()
        elif len(self.pending) >= self.guard.most_in_a_row:
            self.fetch(progress)
        if progress.step % self.log_steps == 0:
            self.write_line(progress)

    def fetch(self, progress: Progress) -> None:
        """Bring the outputs of the latest steps here, and stop the training if they show that it has diverged."""
        rows = np.array([outputs.asnumpy() for outputs in self.pending], np.float64).reshape(-1, len(OUTPUTS))
        self.pending = []
        first = progress.step - len(rows) + 1
        for number, row in enumerate(rows, start=first):
            if StepOutputs(*row).nonfinite == 0:
                progress.last_good_step = number
        self.line.add(rows)
        self.epoch.add(rows)
        self.guard.check(rows, first)

    def write_line(self, progress: Progress) -> None:
        """Record the steps since the last record; within an epoch, say so on the terminal too."""
        self.fetch(progress)
        figures = self.line.take()
        if figures is None or self.metrics is None:
            return
        epoch = self.epoch_of(progress)
        self.metrics.write("train", progress.step, epoch, figures)
        if progress.micro_batches < self.micro_batches_per_epoch:
            text = describe(figures) + self.time_left(figures, progress)
            self.bar.show(text)
            logger.info("epoch %.2f, step %d: %s", epoch, progress.step, text)

    def take_epoch(self, progress: Progress) -> Optional[dict[str, Any]]:
        """Record what is left of an epoch that is over; returns its figures."""
        self.bar.close()
        self.write_line(progress)
        return self.epoch.take()

    def epoch_line(self, figures: Optional[dict[str, Any]], results: str, progress: Progress) -> None:
        """Log the figures of one epoch.

        Args:
            figures: from `take_epoch`.
            results: of the evaluation, or nothing.
            progress: counts this epoch as done.
        """
        if figures is not None:
            left = self.time_left(figures, progress)
            logger.info("epoch %d/%d: %s%s%s", progress.epoch, self.epochs, describe(figures), results, left)

    def time_left(self, figures: dict[str, Any], progress: Progress) -> str:
        """Time until the end of the epoch, if one has begun, and of the training, at the speed in `figures`."""
        if not figures["images_per_second"]:
            return ""
        seconds_per_epoch = self.images_per_epoch / figures["images_per_second"]
        done = progress.micro_batches / self.micro_batches_per_epoch
        epochs_left = self.epochs - progress.epoch
        evaluations = epochs_left // self.eval_every * self.evaluation_seconds
        run = f"{format_duration((epochs_left - done) * seconds_per_epoch + evaluations)} left"
        return f", {format_duration((1 - done) * seconds_per_epoch)} of the epoch and {run}" if done else f", {run}"

    def epoch_of(self, progress: Progress) -> float:
        """Epochs done, with a fraction."""
        return progress.position(self.micro_batches_per_epoch)

    def restart_clock(self) -> None:
        """Time from now on: what came before was not training."""
        self.line.restart_clock()
        self.epoch.restart_clock()

    def close(self) -> None:
        """The training ends, for whatever reason: leave the terminal as it was."""
        self.bar.close()


class Summary:
    """Means over some steps, and their speed.

    Args:
        images_per_step: over all ranks.
    """

    def __init__(self, images_per_step: int) -> None:
        self.images_per_step = images_per_step
        self._rows: list[np.ndarray] = []
        self._waiting_known = False
        self.restart_clock()

    def wait(self, seconds: float) -> None:
        """Count time in which the process had no batch to work on."""
        self._waited += seconds
        self._waiting_known = True

    def add(self, rows: np.ndarray) -> None:
        """Take the outputs of n steps (n, len(OUTPUTS))."""
        self._rows.extend(rows)
        self._timed += len(rows)

    def restart_clock(self) -> None:
        """Time from now on, because what came before was not training (compilation, evaluation)."""
        self._clock = time.monotonic()
        self._timed, self._waited = 0, 0.0

    def take(self) -> Optional[dict[str, Any]]:
        """Figures of the steps since the last call, or None if there were none."""
        seconds, timed, waited = time.monotonic() - self._clock, self._timed, self._waited
        rows, self._rows = np.array(self._rows), []
        self.restart_clock()
        if not len(rows):
            return None
        columns = dict(zip(OUTPUTS, rows.T))
        finite = columns["nonfinite"] == 0
        measured = timed > 0 and seconds > 0
        return {
            "updates": len(rows),
            "loss": float(columns["loss"][finite].mean()) if finite.any() else None,
            "grad_norm": float(columns["grad_norm"][finite][-1]) if finite.any() else None,
            "lr": float(columns["lr"][-1]),
            "scale": float(columns["scale"][-1]),
            "nonfinite": int((~finite).sum()),
            "images_per_second": round(timed * self.images_per_step / seconds, 2) if measured else None,
            "data_wait": round(min(waited / seconds, 1.0), 4) if measured and self._waiting_known else None,
        }


class DivergenceGuard:
    """Stops a training after too many non-finite steps in a row, and shows what helps to find the cause."""

    KEPT = 20  # steps shown in the report

    def __init__(self, most_in_a_row: int, report: bool = True) -> None:
        self.most_in_a_row = most_in_a_row
        self.report = report  # on one rank, since all see the same
        self._recent: list[tuple[int, dict[str, float]]] = []
        self._last_good: Optional[tuple[int, dict[str, float]]] = None

    def check(self, rows: np.ndarray, first: int) -> None:
        """Look at the outputs of n steps (n, len(OUTPUTS)), the first of which is number `first` (from 1).

        Raises:
            TrainingDiverged: the limit is reached.
        """
        for number, row in enumerate(rows, start=first):
            values = dict(zip(OUTPUTS, row))
            self._recent = [*self._recent, (number, values)][-self.KEPT :]
            if values["nonfinite"] == 0:
                self._last_good = (number, values)
            if values["nonfinite_in_a_row"] >= self.most_in_a_row:
                if self.report:
                    self._write_report()
                good = f"step {self._last_good[0]}" if self._last_good else "none in this run"
                raise TrainingDiverged(
                    f"training diverged: {self.most_in_a_row} non-finite steps in a row, the last good one: {good}; "
                    "lower base_lr, lengthen warmup_length or use amp_level O0, then --resume auto "
                    "--allow_config_change True"
                )

    def _write_report(self) -> None:
        lines = [f"{'step':>8} {'loss':>12} {'grad norm':>12} {'lr':>12} {'scale':>12}"]
        shown = list(self._recent)
        if self._last_good is not None and self._last_good[0] < shown[0][0]:
            shown.insert(0, self._last_good)
        for number, values in shown:
            figures = " ".join(f"{values[name]:12.6g}" for name in ("loss", "grad_norm", "lr", "scale"))
            lines.append(f"{number:8d} {figures}{'' if values['nonfinite'] else '  (good)'}")
        logger.error("the last steps before the stop:\n%s", "\n".join(lines))


def describe(figures: dict[str, Any]) -> str:
    """The figures of a `Summary` as a part of a line."""
    loss = "not finite" if figures["loss"] is None else f"{figures['loss']:.4f}"
    text = f"loss {loss}, lr {figures['lr']:.3e}"
    if figures["grad_norm"] is not None:
        text += f", gradient norm {figures['grad_norm']:.3g}"
    text += f", scale {figures['scale']:g}"
    if figures["images_per_second"]:
        text += f", {figures['images_per_second']:.1f} images/s"
    if figures["data_wait"] is not None:
        text += f", {100 * figures['data_wait']:.0f} % waiting for data"
    if figures["nonfinite"]:
        text += f", {figures['nonfinite']} of {figures['updates']} steps not finite"
    return text


def format_duration(seconds: float) -> str:
    """h:mm:ss, or days in front of it."""
    days, rest = divmod(int(seconds), 86400)
    text = f"{rest // 3600}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days} d {text}" if days else text
