"""Milliseconds per training step: a task (child.py), and what all_cards.py measures on every card."""

from __future__ import annotations

import time
from typing import Any, Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor

from focal.config import Config, load_config
from focal.data import TrainBatch, blank_batch
from focal.distributed.device import Device, setup_device
from focal.trainers.compile_cache import compile_step
from focal.trainers.setup import build_network, build_train_step
from focal.trainers.train_one_step import OUTPUTS

STEPS_PER_EPOCH = 1000  # only the schedule's constants depend on it


def measure(config: Any, overrides: dict[str, Any], steps: int, rounds: int) -> dict[str, Any]:
    """Time the training step of a configuration in this process, alone.

    Args:
        config: YAML file or settings.
        overrides: settings that replace those.
        steps: steps per round; outputs are fetched after each round, as a job fetches them every `log_steps`.
        rounds: their median counts; one more goes before them.
    """
    settings = load_config(config, overrides)
    return time_step(settings, setup_device(settings.run), steps, rounds)


def time_step(config: Config, device: Device, steps: int, rounds: int) -> dict[str, Any]:
    """Build and compile the step and time it on random pictures; see `measure`."""
    network = build_network(config)
    step = build_train_step(config, network, STEPS_PER_EPOCH, device)
    batch = random_batch(config, device.rank)
    start = time.perf_counter()
    # From the queue of sink mode the first step compiles; otherwise, it is done ahead, as in a job.
    done = "" if config.run.dataset_sink_mode else compile_step(step, list(map(Tensor, batch)), config, device)
    take_step = _from_queue(step, batch) if config.run.dataset_sink_mode else lambda: step(*map(Tensor, batch))
    losses = [_loss(take_step().asnumpy())]
    compile_seconds = time.perf_counter() - start
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        outputs = [take_step() for _ in range(steps)]
        losses += [_loss(output.asnumpy()) for output in outputs]
        seconds.append((time.perf_counter() - start) / steps)
    timed = sorted(seconds[1:])
    median = float(np.median(timed))
    return {
        "ms_per_step": 1000 * median,
        "ms_low": 1000 * timed[0],
        "ms_high": 1000 * timed[-1],
        "images_per_second": config.data.batch_size * device.world_size / median,
        "batch_size": config.data.batch_size,
        "compile_seconds": compile_seconds,
        "step_was": done,
        "jit_level": device.jit_level,
        "losses": losses,
        "finite": bool(np.isfinite(losses).all()),
        "trained_parameters": int(sum(parameter.size for parameter in network.trainable_params())),
        "arch": config.model.arch,
        "image_size": list(config.model.image_hw),
        "peak_memory_bytes": 0 if device.target == "CPU" else int(ms.runtime.max_memory_allocated()),
    }


def random_batch(config: Config, seed: int) -> TrainBatch:
    """Random pictures and classes, neither erased nor mixed, with drop path that keeps everything: a training batch."""
    blank = blank_batch(config)
    rng = np.random.default_rng(seed)
    targets = np.zeros_like(blank.targets)
    targets[np.arange(len(targets)), rng.integers(0, targets.shape[1], len(targets))] = 1.0
    images = rng.integers(0, 256, blank.images.shape, np.uint8)
    return blank._replace(images=images, targets=targets, drop_path=np.ones_like(blank.drop_path))


def _loss(outputs: np.ndarray) -> float:
    return float(outputs[OUTPUTS.index("loss")])


class RepeatedBatch:
    """One batch over and over, as a source whose length the engine can ask for."""

    def __init__(self, batch: tuple[np.ndarray, ...]) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, position: int) -> tuple[np.ndarray, ...]:
        return self.batch


def _from_queue(step: ms.nn.Cell, batch: tuple[np.ndarray, ...]) -> Callable[[], Tensor]:
    import mindspore.dataset as ds

    columns = list(TrainBatch._fields)
    dataset = ds.GeneratorDataset(RepeatedBatch(batch), columns, num_parallel_workers=1, shuffle=False)
    return ms.data_sink(step, dataset, sink_size=1)
