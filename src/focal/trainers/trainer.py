"""The training loop: epochs, steps and micro-batches; and between them log, evaluate, save, stop."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Optional

import mindspore as ms
import numpy as np
from mindspore import Tensor

from focal.checkpoint.resume import Progress, make_meta
from focal.checkpoint.series import BestCheckpoints, LastCheckpoints
from focal.checkpoint.train_state import collect_tensors, weights_only
from focal.config import Config, ConfigError
from focal.data import EvalData, TrainData, blank_batch
from focal.distributed.collectives import all_reduce_sum
from focal.distributed.device import Device
from focal.distributed.progress_watch import ProgressWatch
from focal.distributed.signals import StopSignals
from focal.errors import NOT_SAVED
from focal.evaluation import EvalResult, EvalStep, evaluate, weights_replaced
from focal.predictions import PredictionCollector
from focal.trainers.compile_cache import compile_step
from focal.trainers.metrics import MetricsFiles
from focal.trainers.train_one_step import TrainOneStep
from focal.trainers.training_log import TrainingDiverged, TrainingLog, format_duration

logger = logging.getLogger("focal")

STOP_CHECK_STEPS = 10  # with several ranks: steps between looks at whether one of them got a signal


@dataclasses.dataclass
class Outputs:
    """Where a training writes; only rank 0 does.

    Attributes:
        predictions: file for what the best weights predict for each image of val; None if it is not wanted.
    """

    metrics: Optional[MetricsFiles]
    last: LastCheckpoints
    best: BestCheckpoints
    send: Callable[[], None] = lambda: None
    predictions: Optional[Path] = None


class Trainer:
    """Runs a training from where `progress` says to its end.

    A step is one update of the weights, from `accumulation_step` micro-batches.

    Args:
        train_step: with its state restored.
        eval_step: of the same network.
        train_data, eval_data: this rank's part of the data.
        progress: where the training is; kept up to date.
        outputs: where results go.
        stop: says when a signal asks for the end.

    Raises:
        ConfigError: `accumulation_step` does not fit the number of batches in an epoch.
    """

    def __init__(
        self,
        config: Config,
        device: Device,
        train_step: TrainOneStep,
        eval_step: EvalStep,
        train_data: TrainData,
        eval_data: EvalData,
        progress: Progress,
        outputs: Outputs,
        stop: StopSignals,
    ) -> None:
        self.config, self.device = config, device
        self.train_step, self.eval_step = train_step, eval_step
        self.train_data, self.eval_data = train_data, eval_data
        self.progress, self.outputs, self.stop = progress, outputs, stop
        self.epochs = config.optim.epochs
        self.micro_batches_per_step = config.step.accumulation_step
        self.steps_per_epoch = steps_per_epoch(train_data.batches_per_epoch, self.micro_batches_per_step)
        if config.run.dataset_sink_mode and train_data.batches_per_epoch % self.micro_batches_per_step:
            raise ConfigError(
                f"accumulation_step: with dataset_sink_mode {self.micro_batches_per_step} must divide the "
                f"{train_data.batches_per_epoch} batches of an epoch, which all go into the queue"
            )
        self.log = TrainingLog(config, device, outputs.metrics, self.steps_per_epoch)
        self.watch = ProgressWatch(config.run.step_timeout if device.world_size > 1 else 0.0, device.rank)
        self.saved_at_step = -1  # the step that last.ckpt holds, if this process has written it

    def run(self) -> int:
        """Train to the end, or until a signal or max_steps.

        Returns:
            The exit code: 0, 128 + signal number, or `NOT_SAVED`.

        Raises:
            TrainingDiverged: too many steps in a row were not finite.
        """
        progress = self.progress
        if self.max_steps_reached():
            logger.info("nothing to do: step %d, max_steps %d", progress.step, self.config.run.max_steps)
            return 0
        if progress.epoch >= self.epochs:  # an epoch whose evaluation is missing is not counted as done
            logger.info("nothing to do: all %d epochs are done", self.epochs)
            return 0
        self.watch.start()
        try:
            if self.epoch_is_whole():  # the checkpoint was written because its evaluation failed
                self.finish_epoch()
            if progress.epoch < self.epochs:
                code = self.train_epochs()
                if code is not None:
                    return code
        except TrainingDiverged:
            self.save_if_none()
            raise
        finally:
            self.watch.stop()
            self.log.close()
        logger.info("training finished: best top-1 %.2f %%", progress.best_top1)
        return NOT_SAVED if self.report_unsaved() else 0

    def train_epochs(self) -> Optional[int]:
        """Compile the step and train all epochs that are left; returns the exit code if it has to stop before."""
        progress = self.progress
        train_step, batches_of = self.prepare()
        for epoch in range(progress.epoch, self.epochs):
            batches = batches_of(epoch, progress.micro_batches)
            self.log.start_epoch(progress)
            for _ in range(progress.micro_batches // self.micro_batches_per_step, self.steps_per_epoch):
                for _ in range(self.micro_batches_per_step):
                    outputs = train_step(*next(batches))
                    self.watch.beat()
                progress.step += 1
                progress.micro_batches += self.micro_batches_per_step
                self.log.step(outputs, progress)
                if self.epoch_is_whole():
                    self.finish_epoch()
                elif self.save_steps_due():
                    self.save()
                if self.stop_requested() and progress.epoch < self.epochs:
                    return self.stop_early()
        return None

    def prepare(self) -> tuple[Callable[..., Tensor], Callable[[int, int], Iterator[tuple]]]:
        """Compile the step, and say how it is fed: from here, or from the device's queue (dataset_sink_mode).

        Returns:
            The function that trains on one micro-batch, and (epoch, first micro-batch) -> what that function takes.
        """
        progress = self.progress
        if self.config.run.dataset_sink_mode:
            epochs_left = self.epochs - progress.epoch
            queue = self.train_data.dataset(progress.epoch, progress.micro_batches, epochs_left)
            from_queue = ms.data_sink(self.train_step, queue, sink_size=1)
            if self.config.run.compile_cache is not None:
                self.compile()
            return from_queue, lambda epoch, first: itertools.repeat(())
        self.compile()
        return self.train_step, self.batches

    def compile(self) -> None:
        """Compile the step before its first call, or load it from `compile_cache`."""
        start = time.monotonic()
        if not self.config.run.graph_mode:
            logger.info("compiling the training step, which takes from half a minute to several minutes")
        batch = [Tensor(array) for array in blank_batch(self.config)]
        with self.log.bar.waiting("compiling the training step"):
            done = compile_step(self.train_step, batch, self.config, self.device)
        if done:
            logger.info("training step %s in %s", done, format_duration(time.monotonic() - start))
        self.watch.beat()

    def batches(self, epoch: int, first: int) -> Iterator[tuple[Tensor, ...]]:
        """Micro-batches of an epoch from number `first` on; stop signals stay ours while workers read."""
        for batch in self.log.timed(self.stop.guard(self.train_data.epoch(epoch, first))):
            yield tuple(map(Tensor, batch))

    def epoch_is_whole(self) -> bool:
        """Whether all steps of the current epoch are done, and what follows them is not."""
        return self.progress.micro_batches == self.steps_per_epoch * self.micro_batches_per_step

    def finish_epoch(self) -> None:
        """After the last step of an epoch: evaluate, log, save.

        If the evaluation fails, the epoch is saved before the error goes on; resuming then begins with the evaluation.
        """
        progress, run = self.progress, self.config.run
        figures = self.log.take_epoch(progress)
        progress.epoch, progress.micro_batches = progress.epoch + 1, 0
        self.log_unreadable()
        last, results = progress.epoch == self.epochs, ""
        if last or progress.epoch % run.eval_every == 0:
            try:
                results = self.evaluate()
            except Exception:
                progress.epoch, progress.micro_batches = progress.epoch - 1, self.log.micro_batches_per_epoch
                self.save()
                raise
        self.log.epoch_line(figures, results, progress)
        if last or progress.epoch % run.save_every == 0 or self.save_steps_due():
            self.save()
        self.log.restart_clock()

    def log_unreadable(self) -> None:
        """Say how many images of the epoch could not be read and were replaced by others, on all ranks together."""
        replaced = int(all_reduce_sum(np.array([self.train_data.take_replaced()], np.float32))[0])
        if replaced and self.device.is_main:
            logger.warning("%d training images of this epoch were unreadable; others took their places", replaced)

    def evaluate(self) -> str:
        """Evaluate raw and EMA weights, keep the best; returns the results for the epoch's line."""
        start = time.monotonic()
        wanted = self.outputs.predictions is not None
        collectors = {prefix: PredictionCollector(self.eval_data) if wanted else None for prefix in ("", "ema_")}
        results = {"": self.evaluate_weights(collectors[""])}
        ema = self.train_step.ema
        if ema is not None:
            with weights_replaced(ema.parameters_to_average, ema.averages):
                results["ema_"] = self.evaluate_weights(collectors["ema_"])
        self.train_step.set_train()
        self.log.evaluation_seconds = time.monotonic() - start
        values: dict[str, Any] = {}
        for prefix, result in results.items():
            values.update({f"{prefix}{name}": getattr(result, name) for name in ("top1", "top5", "loss")})
        values["images"] = results[""].images
        if self.outputs.metrics is not None:
            self.outputs.metrics.write("val", self.progress.step, self.progress.epoch, values)
        self.keep_best(values, collectors)
        text = f", top-1 {values['top1']:.2f} %, top-5 {values['top5']:.2f} %"
        if ema is not None:
            text += f", EMA {values['ema_top1']:.2f} % and {values['ema_top5']:.2f} %"
        return text

    def evaluate_weights(self, collector: Optional[PredictionCollector]) -> EvalResult:
        """Evaluate the weights that the network holds."""

        def guard(batches: Any) -> Iterator[Any]:
            for batch in self.stop.guard(batches):
                self.watch.beat()
                yield batch

        return evaluate(self.eval_step, self.eval_data, self.config.data.skip_unreadable, guard, collector)

    def keep_best(self, values: dict[str, Any], collectors: dict[str, Optional[PredictionCollector]]) -> None:
        """Offer the weights to the best checkpoints; their score is the better top-1 of raw and EMA weights."""
        score = max(values["top1"], values.get("ema_top1", -1.0))
        use_ema = values.get("ema_top1", -1.0) == score
        if score > self.progress.best_top1:
            self.save_predictions(collectors["ema_" if use_ema else ""], score, "EMA" if use_ema else "raw")
        self.progress.best_top1 = max(score, self.progress.best_top1)
        if not self.device.is_main:
            return
        tensors = weights_only(self.tensors(), self.train_step.state())
        self.outputs.best.offer(score, tensors, {**self.meta(), "accuracy": values, "best_is_ema": use_ema})

    def save_predictions(self, collector: Optional[PredictionCollector], top1: float, weights: str) -> None:
        """Write what the best weights so far predict for each image of val. Every rank must call it."""
        path = self.outputs.predictions
        if collector is None or path is None:
            return
        progress = self.progress
        source = {"epoch": progress.epoch, "step": progress.step, "weights": weights, "top1": top1}
        predictions = collector.gather(source)
        if self.device.is_main:
            try:
                predictions.save(path)
            except OSError as error:
                logger.error("predictions not saved, training continues: %s", error)

    def meta(self) -> dict[str, Any]:
        data = self.train_data
        return make_meta(
            self.config, self.progress, self.device.world_size, data.batches_per_epoch, data.known_class_names
        )

    def tensors(self) -> dict[str, np.ndarray]:
        return collect_tensors(self.train_step.state(), self.device.world_size)

    def save_steps_due(self) -> bool:
        every = self.config.run.save_steps
        return bool(every) and self.progress.step % every == 0

    def save(self) -> None:
        """Write last.ckpt, unless it holds this step. Waits for the device: a diverged state is never saved."""
        self.log.fetch(self.progress)
        if not self.device.is_main or self.saved_at_step == self.progress.step:
            return
        if self.outputs.last.save(self.tensors(), self.meta()):
            self.saved_at_step = self.progress.step
            self.outputs.send()

    def save_if_none(self) -> None:
        """After divergence: last.ckpt stays as it is; if there is none yet, write the state of the last good step."""
        if self.device.is_main and not (self.outputs.last.folder / "last.ckpt").exists():
            self.outputs.last.save(self.tensors(), self.meta())

    def report_unsaved(self) -> bool:
        """At the end: whether the disk lacks the last state or the best weights; the log then says what it holds."""
        if not self.device.is_main:
            return False
        lost, step, last, best = [], self.progress.step, self.outputs.last.path(0), self.outputs.best
        if self.saved_at_step != step:
            held = f"step {self.saved_at_step}" if self.saved_at_step >= 0 else "what was there before this start"
            held = f"{last} holds {held}, not step {step}" if last.exists() else f"there is no {last}"
            lost.append(f"{held}; make room, then --resume auto trains the missing part again")
        if best.lost is not None:
            lost.append(
                f"{best.folder} lacks the best weights, of top-1 {best.lost:.2f} %; use {last.name}, or make room and "
                "--resume an earlier checkpoint"
            )
        if lost:
            logger.error("NOT SAVED: %s", "; and ".join(lost))
        return bool(lost)

    def max_steps_reached(self) -> bool:
        most = self.config.run.max_steps
        return bool(most) and self.progress.step >= most

    def stop_requested(self) -> bool:
        """Whether max_steps are done or a signal has come, on any rank.

        Ranks agree every few steps only, since an agreement waits for all of them.
        """
        progress = self.progress
        if self.device.world_size > 1:
            if progress.step % STOP_CHECK_STEPS == 0 or not progress.micro_batches:
                received = all_reduce_sum(np.array([self.stop.received], np.float32))[0]
                if received and not self.stop.received:  # a rank that got no signal itself stops as if it had
                    self.stop.received = signal.SIGTERM
            elif self.stop.received:
                return self.max_steps_reached()  # wait for the step at which all ranks look
        return bool(self.stop.received) or self.max_steps_reached()

    def stop_early(self) -> int:
        """Record and save what was done; returns the exit code."""
        progress = self.progress
        self.log.write_line(progress)
        self.save()
        why = f"signal {self.stop.received}" if self.stop.received else "max_steps"
        logger.info("stopped (%s) at step %d, epoch %.2f", why, progress.step, self.log.epoch_of(progress))
        if self.report_unsaved():
            return NOT_SAVED
        logger.info("--resume auto continues")
        return 128 + self.stop.received if self.stop.received else 0


def steps_per_epoch(batches: int, micro_batches: int) -> int:
    """Steps in an epoch of `batches` batches per rank; micro-batches that do not fill a step are left out.

    Raises:
        ConfigError: not even one.
    """
    steps = batches // micro_batches
    if not steps:
        raise ConfigError(f"accumulation_step: {micro_batches} is more than the {batches} batches of an epoch")
    return steps
