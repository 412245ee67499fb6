"""All that a training needs to go on exactly where it was: tensors of the step, progress, and the settings."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, Optional

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor

from focal.checkpoint.files import Checkpoint
from focal.checkpoint.weights import refresh_tables
from focal.config import Config, ConfigError, load_config, to_flat_dict
from focal.config.schema import may_change_on_resume
from focal.distributed.device import Device, all_reduce_sum, broadcast_parameters
from focal.trainers.train_one_step import TrainOneStep

logger = logging.getLogger("focal")

_SCHEDULE_TABLE = "schedule.learning_rates"  # follows from the configuration, not saved
_POSITION = "schedule.position"
_RANDOM_COUNTER = "random_counter"


@dataclasses.dataclass
class Progress:
    """Where a training is.

    Attributes:
        epoch: epochs finished.
        step_in_epoch: micro-batches of the current epoch that are done, on each rank.
        update: optimizer updates done or skipped since the start.
        best_top1: highest top-1 in per cent so far, of raw or averaged weights.
        last_good_update: the latest finite update.
        training: a random number that this training has and no other; 0: not known.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    update: int = 0
    best_top1: float = -1.0
    last_good_update: int = 0
    training: int = 0

    def position(self, micro_batches_per_epoch: int) -> float:
        """Epochs done, as a number with a fraction."""
        return self.epoch + self.step_in_epoch / micro_batches_per_epoch


def collect_tensors(train_step: TrainOneStep, world_size: int) -> dict[str, np.ndarray]:
    """Values of all state of the step, by name; the random counter counted as if on one rank."""
    tensors = {}
    for parameter in _state_parameters(train_step):
        value = parameter.asnumpy()
        if parameter.name == _RANDOM_COUNTER:
            value = np.asarray(value // world_size, value.dtype)
        tensors[parameter.name] = value
    return tensors


def weights_only(tensors: dict[str, np.ndarray], train_step: TrainOneStep) -> dict[str, np.ndarray]:
    """The part of `collect_tensors` that evaluation and export need: weights and their averages."""
    names = {parameter.name for parameter in train_step.network.get_parameters()} - {_RANDOM_COUNTER}
    if train_step.ema is not None:
        names |= {average.name for average in train_step.ema.averages}
    return {name: value for name, value in tensors.items() if name in names}


def _state_parameters(train_step: TrainOneStep) -> list[Parameter]:
    return [
        parameter
        for parameter in train_step.get_parameters()
        if parameter.name != _SCHEDULE_TABLE and not parameter.name.startswith("accumulated")
    ]


def make_meta(config: Config, progress: Progress, world_size: int, steps_per_epoch: int) -> dict[str, Any]:
    """Metadata of a checkpoint: progress, settings, number of devices, micro-batches per epoch and rank."""
    return {
        "progress": dataclasses.asdict(progress),
        "config": to_flat_dict(config),
        "world_size": world_size,
        "steps_per_epoch": steps_per_epoch,
    }


def changed_settings(saved: dict[str, Any], config: Config) -> list[str]:
    """`key: old -> new` for every setting that affects the training and differs from the one in a checkpoint.

    Keys that are missing from older checkpoints are compared with today's defaults.

    Args:
        saved: the flat settings of the checkpoint.
        config: settings of the present job.
    """
    current = to_flat_dict(config)
    earlier = {**to_flat_dict(load_config({})), **saved}
    differences = []
    for name in (*current, *sorted(set(saved) - set(current))):
        old, new = repr(earlier[name]), repr(current[name]) if name in current else "(no such setting)"
        if old != new and not may_change_on_resume(name):
            differences.append(f"{name}: {old} -> {new}")
    return differences


def restore(
    checkpoint: Checkpoint, train_step: TrainOneStep, config: Config, world_size: int, steps_per_epoch: int
) -> Progress:
    """Put the state of a checkpoint into the step and return where the training was.

    With another number of devices, or of images in the data, the state is kept, the order of the data is not: the
    training goes on at the same share of the epoch.

    Args:
        checkpoint: with metadata.
        train_step: made from the same configuration.
        config: of the present job.
        world_size: devices of the present job.
        steps_per_epoch: micro-batches per epoch and rank in the present job.

    Raises:
        ConfigError: a setting that matters has changed, and `allow_config_change` is off.
    """
    assert checkpoint.meta is not None
    differences = changed_settings(checkpoint.meta["config"], config)
    if differences and not config.run.allow_config_change:
        raise ConfigError(
            f"resume: settings differ from those of {checkpoint.path}: {'; '.join(differences)}; restore them, or give "
            "--allow_config_change True"
        )
    if differences:
        logger.warning("resuming with changed settings: %s", "; ".join(differences))
    _restore_tensors(checkpoint, train_step, world_size, strict=not differences)
    progress = Progress(**checkpoint.meta["progress"])
    saved = checkpoint.meta
    accumulation = config.step.accumulation_step
    now = (config.data.batch_size * world_size, accumulation, steps_per_epoch)
    images_before = saved["config"]["batch_size"] * saved["world_size"]
    steps_before = saved.get("steps_per_epoch", steps_per_epoch * now[0] // images_before)  # older files do not say
    before = (images_before, saved["config"]["accumulation_step"], steps_before)
    whole_epoch = before[2] // before[1] * before[1]
    if progress.step_in_epoch >= whole_epoch:  # stopped between its last update and what follows: by divergence
        progress.epoch, progress.step_in_epoch = progress.epoch + 1, 0
    if before != now:
        # The share that is done is less than 1, so an update is always left.
        updates_per_epoch = steps_per_epoch // accumulation
        done = progress.step_in_epoch * updates_per_epoch // whole_epoch
        progress.step_in_epoch = done * accumulation
        progress.update = progress.epoch * updates_per_epoch + done
        logger.warning(
            "resuming with %d images per step over all devices and %d steps per epoch, before %d and %d: weights and "
            "optimizer state are kept, the order of the data is not; going on at update %d",
            now[0], now[2], before[0], before[2], progress.update,
        )  # fmt: skip
        train_step.optimizer.position.set_data(Tensor(progress.update, ms.int32))
    return progress


def _restore_tensors(checkpoint: Checkpoint, train_step: TrainOneStep, world_size: int, strict: bool) -> None:
    parameters = {parameter.name: parameter for parameter in _state_parameters(train_step)}
    missing = sorted(parameters.keys() - checkpoint.tensors.keys())
    # Checkpoints of earlier versions hold the counter of random masks even where nothing uses it.
    unexpected = sorted(checkpoint.tensors.keys() - parameters.keys() - {_RANDOM_COUNTER})
    misshaped = [name for name in parameters.keys() & checkpoint.tensors.keys()
                 if parameters[name].shape != checkpoint.tensors[name].shape]  # fmt: skip
    problems = []
    for kind, names in (("missing", missing), ("unexpected", unexpected), ("misshaped", sorted(misshaped))):
        if names:
            problems.append(f"{kind} {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}")
    if problems and strict:
        raise ConfigError(f"resume: {checkpoint.path} does not fit this training: {'; '.join(problems)}")
    if problems:
        logger.warning("resume: left as they are: %s", "; ".join(problems))
    for name, parameter in parameters.items():
        if name in missing or name in misshaped:
            continue
        value = checkpoint.tensors[name]
        if name == _RANDOM_COUNTER:
            value = value * world_size
        parameter.set_data(Tensor(value, parameter.dtype))
    if train_step.ema is not None:
        for average, parameter in zip(train_step.ema.averages, train_step.ema.parameters_to_average):
            if average.name in missing or average.name in misshaped:
                average.set_data(Tensor(parameter.asnumpy()))  # from here on, not from this process's random start
    refresh_tables(train_step.network)


def share_state(train_step: TrainOneStep, progress: Optional[Progress], device: Device) -> Progress:
    """Give every rank the state of rank 0, and each its own place in the random sequence.

    Args:
        train_step: on rank 0 with the state to share.
        progress: on rank 0, where the training is; ignored elsewhere.
        device: this process.
    """
    progress = progress if device.is_main and progress is not None else Progress()
    if device.world_size > 1:
        fields = np.array(dataclasses.astuple(progress), np.float64)
        # Counters beyond 2**24 would lose digits as float32: send them as high and low halves.
        high, low = np.divmod(fields, 4096.0)
        summed = all_reduce_sum(np.stack([high, low]).astype(np.float32) * (1.0 if device.is_main else 0.0))
        values = summed[0].astype(np.float64) * 4096.0 + summed[1]
        names = [field.name for field in dataclasses.fields(Progress)]
        progress = Progress(**{name: float(value) if name == "best_top1" else int(value)
                               for name, value in zip(names, values)})  # fmt: skip
        broadcast_parameters(_state_parameters(train_step))
        refresh_tables(train_step.network)
    counter = train_step.random_counter
    if counter is not None and device.rank:
        counter.set_data(Tensor(int(counter.asnumpy()) + device.rank, counter.dtype))
    return progress
