"""The loop over epochs and steps, and what happens between them: log, evaluate, save, stop."""

from __future__ import annotations

import dataclasses
import logging
import signal
import time
from collections.abc import Iterable, Iterator
from typing import Any, Callable, Optional

import mindspore as ms
import numpy as np
from mindspore import Tensor

from focal.checkpoint.resume import Progress, collect_tensors, make_meta, weights_only
from focal.checkpoint.series import BestCheckpoints, LastCheckpoints
from focal.config import Config, ConfigError
from focal.distributed.device import Device, ProgressWatch, all_reduce_sum
from focal.distributed.memory import compile_ahead
from focal.distributed.signals import StopSignals
from focal.evaluation import EvalStep, averaged_weights, evaluate
from focal.trainers.callbacks import (
    DivergenceGuard,
    MetricsFiles,
    Summary,
    TrainingDiverged,
    UpdateQueue,
    format_duration,
)
from focal.trainers.train_one_step import OUTPUTS, TrainOneStep

logger = logging.getLogger("focal")

NONFINITE = OUTPUTS.index("nonfinite")
STOP_CHECK_UPDATES = 10  # with several ranks: updates between looks at whether one of them got a signal


@dataclasses.dataclass
class Outputs:
    """Where a training writes; only rank 0 does."""

    metrics: Optional[MetricsFiles]
    last: LastCheckpoints
    best: BestCheckpoints
    send: Callable[[], None] = lambda: None


class Training:
    """Runs a training from where `progress` says to its end.

    Args:
        config: of the job.
        device: this process.
        train_step: with its state restored.
        eval_step: of the same network.
        train_data, eval_data: see focal.data.
        progress: where the training is; kept up to date.
        outputs: where results go.
        stop: says when a signal asks for the end.
    """

    def __init__(
        self,
        config: Config,
        device: Device,
        train_step: TrainOneStep,
        eval_step: EvalStep,
        train_data: Any,
        eval_data: Any,
        progress: Progress,
        outputs: Outputs,
        stop: StopSignals,
    ) -> None:
        self.config = config
        self.device = device
        self.train_step = train_step
        self.eval_step = eval_step
        self.train_data = train_data
        self.eval_data = eval_data
        self.progress = progress
        self.outputs = outputs
        self.micro_batches = config.step.accumulation_step
        self.updates_per_epoch = updates_per_epoch(train_data.steps_per_epoch, self.micro_batches)
        if config.run.dataset_sink_mode and train_data.steps_per_epoch % self.micro_batches:
            raise ConfigError(
                f"accumulation_step: with dataset_sink_mode {self.micro_batches} must divide the "
                f"{train_data.steps_per_epoch} batches of an epoch, which all go into the queue"
            )
        images_per_update = config.data.batch_size * device.world_size * self.micro_batches
        self.queue, self.line, self.epoch = UpdateQueue(), Summary(images_per_update), Summary(images_per_update)
        self.guard = DivergenceGuard(config.step.max_nonfinite_steps, report=device.is_main)
        self.stop = stop
        self.stop_signal = 0  # that all ranks agreed to stop by
        self.watch = ProgressWatch(config.run.step_timeout if device.world_size > 1 else 0.0, device.rank)
        self.evaluation_seconds = 0.0
        self.first_update = True  # of this process: it compiles
        self.compiled = config.run.graph_mode == 1  # PyNative compiles nothing
        self.saved_update = -1  # the latest that last.ckpt has, of those saved by this process
        self.started = time.time()

    def run(self) -> int:
        """Train to the end, or until a signal or max_steps; returns the exit code (0, or 128 + signal number).

        Raises:
            TrainingDiverged: see `DivergenceGuard`.
        """
        if self._max_steps_reached():
            logger.info("nothing to do: update %d, max_steps %d", self.progress.update, self.config.run.max_steps)
            return 0
        self.watch.start()
        try:
            for outputs in self._steps():
                self._after_step(outputs)
                if self.progress.step_in_epoch == self.updates_per_epoch * self.micro_batches:
                    self._end_epoch()
                if self._save_due():
                    self._save()
                if self._stop_agreed() or self._max_steps_reached():
                    break
        except TrainingDiverged:
            self._save_if_none()
            raise
        finally:
            self.watch.stop()
        return self._finish()

    def _steps(self) -> Iterator[tuple]:
        """Do one micro-batch per item: the outputs of the step, from wherever the training is to the last epoch."""
        per_epoch = self.updates_per_epoch * self.micro_batches
        epochs = self.config.optim.epochs
        if self.config.run.dataset_sink_mode:
            first, progress = self.progress.step_in_epoch, self.progress
            dataset = self.train_data.dataset(progress.epoch, first, epochs - progress.epoch)
            sink = ms.data_sink(self.train_step, dataset, sink_size=1)
            for _ in range((epochs - progress.epoch) * per_epoch - first):
                yield sink()
            return
        while self.progress.epoch < epochs:
            first = self.progress.step_in_epoch
            batches = self.stop.guard(self.train_data.epoch(self.progress.epoch, first))
            for _, (images, targets) in zip(range(per_epoch - first), batches):
                yield self._step(Tensor(images), Tensor(targets))

    def _step(self, images: Tensor, targets: Tensor) -> tuple:
        if not self.compiled:
            start, self.compiled = time.time(), True
            compile_ahead(self.train_step, images, targets)
            self.watch.beat()
            logger.info("training step compiled in %s", format_duration(time.time() - start))
        return self.train_step(images, targets)

    def _watched(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The items of `batches`, each taken as a sign of progress; stop signals stay ours."""
        for item in self.stop.guard(batches):
            self.watch.beat()
            yield item

    def _after_step(self, outputs: tuple) -> None:
        self.watch.beat()
        progress = self.progress
        progress.step_in_epoch += 1
        if progress.step_in_epoch % self.micro_batches:
            return
        progress.update += 1
        self.queue.add(outputs)
        at_line = progress.update % self.config.run.log_steps == 0
        if self.first_update or at_line or len(self.queue) >= self.guard.most_in_a_row:
            self._fetch()
        if self.first_update:
            logger.info("first update done after %.0f s, compilation included", time.time() - self.started)
            self.line.restart_clock()
            self.epoch.restart_clock()
            self.first_update = False
        if at_line:
            self._write_line()

    def _fetch(self) -> None:
        """Bring the outputs of the latest updates here; stops the training if they show that it has diverged."""
        rows = self.queue.fetch()
        first = self.progress.update - len(rows) + 1
        for number, row in enumerate(rows, start=first):
            if row[NONFINITE] == 0:
                self.progress.last_good_update = number
        self.line.add(rows)
        self.epoch.add(rows)
        self.guard.check(rows, first)

    def _write_line(self) -> None:
        """Record the updates since the last record; within an epoch also say them."""
        figures = self.line.take()
        if figures is None or self.outputs.metrics is None:
            return
        epoch = self._epoch_position()
        self.outputs.metrics.write("train", self.progress.update, epoch, figures)
        if self.progress.step_in_epoch < self.updates_per_epoch * self.micro_batches:
            logger.info("epoch %.2f, update %d: %s", epoch, self.progress.update, _describe(figures))

    def _epoch_position(self) -> float:
        return self.progress.position(self.updates_per_epoch * self.micro_batches)

    def _meta(self) -> dict[str, Any]:
        return make_meta(self.config, self.progress, self.device.world_size, self.train_data.steps_per_epoch)

    def _end_epoch(self) -> None:
        self._fetch()
        self._write_line()
        figures = self.epoch.take()
        progress, run, epochs = self.progress, self.config.run, self.config.optim.epochs
        progress.epoch, progress.step_in_epoch = progress.epoch + 1, 0
        self._report_unreadable()
        results = ""
        last = progress.epoch == epochs
        if last or progress.epoch % run.eval_every == 0:
            results = self._evaluate()
        if figures is not None:
            left = self._time_left(figures)
            logger.info("epoch %d/%d: %s%s%s", progress.epoch, epochs, _describe(figures), results, left)
        if last or progress.epoch % run.save_every == 0:
            self._save()
        self.line.restart_clock()
        self.epoch.restart_clock()

    def _report_unreadable(self) -> None:
        """Say how many images of the epoch other ones had to stand in for, on all ranks together."""
        replaced = int(all_reduce_sum(np.array([self.train_data.take_replaced()], np.float32))[0])
        if replaced and self.device.is_main:
            logger.warning("%d training images of this epoch were unreadable; others took their places", replaced)

    def _time_left(self, figures: dict[str, Any]) -> str:
        if not figures["images_per_second"]:
            return ""
        epochs_left = self.config.optim.epochs - self.progress.epoch
        images = epochs_left * self.updates_per_epoch * self.epoch.images_per_update
        evaluations = epochs_left // self.config.run.eval_every * self.evaluation_seconds
        return f", {format_duration(images / figures['images_per_second'] + evaluations)} left"

    def _evaluate(self) -> str:
        """Evaluate raw and averaged weights, keep the best; returns the results for the progress line."""
        start = time.time()
        skip = self.config.data.skip_unreadable
        results = {"": evaluate(self.eval_step, self.eval_data, skip, self._watched)}
        if self.train_step.ema is not None:
            with averaged_weights(self.train_step.ema):
                results["ema_"] = evaluate(self.eval_step, self.eval_data, skip, self._watched)
        self.train_step.set_train()
        self.evaluation_seconds = time.time() - start
        values = {}
        for prefix, accuracy in results.items():
            values.update(
                {f"{prefix}top1": accuracy.top1, f"{prefix}top5": accuracy.top5, f"{prefix}loss": accuracy.loss}
            )
        values["images"] = results[""].images
        if self.outputs.metrics is not None:
            self.outputs.metrics.write("val", self.progress.update, self.progress.epoch, values)
        self._keep_best({prefix: accuracy.top1 for prefix, accuracy in results.items()}, values)
        text = f", top-1 {values['top1']:.2f} %, top-5 {values['top5']:.2f} %"
        if "ema_top1" in values:
            text += f", averaged {values['ema_top1']:.2f} % and {values['ema_top5']:.2f} %"
        return text

    def _keep_best(self, top1: dict[str, float], values: dict[str, Any]) -> None:
        score = max(top1.values())
        self.progress.best_top1 = max(score, self.progress.best_top1)
        if not self.device.is_main:
            return
        tensors = weights_only(collect_tensors(self.train_step, self.device.world_size), self.train_step)
        use_ema = bool(top1.get("ema_", -1.0) == score)
        self.outputs.best.offer(score, tensors, {**self._meta(), "accuracy": values, "best_is_ema": use_ema})

    def _save_due(self) -> bool:
        steps = self.config.run.save_steps
        complete = self.progress.step_in_epoch % self.micro_batches == 0
        due = bool(steps) and complete and self.progress.update % steps == 0
        return due and not self._is_saved()

    def _is_saved(self) -> bool:
        """Whether last.ckpt is of this very update; only rank 0 saves, and knows."""
        return self.saved_update == self.progress.update

    def _save(self) -> None:
        """Write last.ckpt; also waits for the device, so that what is saved is not of a diverged training."""
        self._fetch()
        if not self.device.is_main:
            return
        tensors = collect_tensors(self.train_step, self.device.world_size)
        if self.outputs.last.save(tensors, self._meta()):
            self.saved_update = self.progress.update
            self.outputs.send()

    def _save_if_none(self) -> None:
        """After divergence: last.ckpt stays as it is; if there is none yet, the state of the last good update is."""
        if self.device.is_main and not (self.outputs.last.folder / "last.ckpt").exists():
            tensors = collect_tensors(self.train_step, self.device.world_size)
            self.outputs.last.save(tensors, self._meta())

    def _stop_agreed(self) -> bool:
        """Whether a signal has arrived. Ranks agree every few updates only: an agreement waits for all of them."""
        if self.progress.step_in_epoch % self.micro_batches:
            return False
        if self.device.world_size == 1:
            self.stop_signal = self.stop.received
        elif self.progress.update % STOP_CHECK_UPDATES == 0 or not self.progress.step_in_epoch:
            agreed = all_reduce_sum(np.array([self.stop.received], np.float32))[0]
            # A rank that got no signal itself stops as if it had.
            self.stop_signal = (self.stop.received or signal.SIGTERM) if agreed else 0
        return self.stop_signal != 0

    def _max_steps_reached(self) -> bool:
        most = self.config.run.max_steps
        return bool(most) and self.progress.update >= most

    def _finish(self) -> int:
        complete = self.progress.epoch >= self.config.optim.epochs
        if not complete:
            self._fetch()
            self._write_line()
            if not self._is_saved():
                self._save()
            why = f"signal {self.stop_signal}" if self.stop_signal else "max_steps"
            logger.info(
                "stopped (%s) at update %d, epoch %.2f; --resume auto goes on", why, self.progress.update,
                self._epoch_position(),
            )  # fmt: skip
        else:
            logger.info("training finished: best top-1 %.2f %%", self.progress.best_top1)
        return 128 + self.stop_signal if self.stop_signal and not complete else 0


def updates_per_epoch(steps_per_epoch: int, micro_batches: int) -> int:
    """Optimizer updates in an epoch; micro-batches that do not fill an update are left out.

    Raises:
        ConfigError: not even one.
    """
    updates = steps_per_epoch // micro_batches
    if not updates:
        raise ConfigError(f"accumulation_step: {micro_batches} is more than the {steps_per_epoch} batches of an epoch")
    return updates


def _describe(figures: dict[str, Any]) -> str:
    loss = "not finite" if figures["loss"] is None else f"{figures['loss']:.4f}"
    text = f"loss {loss}, lr {figures['lr']:.3e}"
    if figures["images_per_second"]:
        text += f", {figures['images_per_second']:.1f} images/s"
    if figures["nonfinite"]:
        text += f", {figures['nonfinite']} of {figures['updates']} updates not finite (scale {figures['scale']:g})"
    return text
