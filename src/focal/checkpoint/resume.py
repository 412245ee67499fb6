"""What a training needs to continue exactly where it was: its tensors, its progress, and its settings."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from typing import Any, Optional

import mindspore as ms
from mindspore import Tensor

from focal.checkpoint.class_names import ClassNames
from focal.checkpoint.files import EMA_PREFIX, Checkpoint, CheckpointError
from focal.checkpoint.train_state import TrainState
from focal.checkpoint.weights import refresh_tables
from focal.config import Config, ConfigError, load_config, to_flat_dict
from focal.config.schema import may_change_on_resume
from focal.distributed.collectives import broadcast_bytes, broadcast_parameters
from focal.distributed.device import Device
from focal.models.layers import RANDOM_COUNTER

logger = logging.getLogger("focal")

# Fields of Progress in checkpoints of earlier versions.
_EARLIER_NAMES = {"step_in_epoch": "micro_batches", "update": "step", "last_good_update": "last_good_step"}
_PROGRESS_BYTES = 512  # room for a Progress as JSON


@dataclasses.dataclass
class Progress:
    """Where a training is.

    Attributes:
        epoch: epochs finished.
        micro_batches: micro-batches of the current epoch that are done, on each rank.
        step: steps (updates of the weights) since the start, skipped ones included.
        best_top1: highest top-1 in per cent so far, of raw or EMA weights.
        last_good_step: the latest step that was finite.
        training: a random number that identifies this training; 0 if it is not known.
    """

    epoch: int = 0
    micro_batches: int = 0
    step: int = 0
    best_top1: float = -1.0
    last_good_step: int = 0
    training: int = 0

    def position(self, micro_batches_per_epoch: int) -> float:
        """Epochs done, as a number with a fraction."""
        return self.epoch + self.micro_batches / micro_batches_per_epoch


def make_meta(
    config: Config, progress: Progress, world_size: int, batches_per_epoch: int, class_names: ClassNames = None
) -> dict[str, Any]:
    """Metadata of a checkpoint: progress, settings, devices, micro-batches per epoch and rank, class names by label."""
    return {
        "progress": dataclasses.asdict(progress),
        "config": to_flat_dict(config),
        "world_size": world_size,
        "steps_per_epoch": batches_per_epoch,  # named so since before a step was an update of the weights
        "class_names": None if class_names is None else list(class_names),
    }


def check_state(checkpoint: Checkpoint) -> None:
    """Check that a checkpoint holds the state of a training, and that its metadata can be what a training has written.

    Raises:
        CheckpointError: it does not, with the way out or the entry that cannot be right.
    """
    path, meta = checkpoint.path, checkpoint.meta
    if meta is None or "optimizer.step" not in checkpoint.tensors:
        raise CheckpointError(
            f"resume: {path} holds weights only; resume from checkpoints/last.ckpt, or start a new training with "
            "--pretrained"
        )
    fault = _fault_of(meta)
    if fault is not None:
        raise CheckpointError(f"resume: {path} has metadata that no training of this version writes: {fault}")


def _fault_of(meta: dict[str, Any]) -> Optional[str]:
    progress, config, names = meta.get("progress"), meta.get("config"), meta.get("class_names")
    if not isinstance(progress, dict) or not isinstance(config, dict):
        return "progress or config is missing"
    progress = {_EARLIER_NAMES.get(name, name): value for name, value in progress.items()}
    fields = {field.name for field in dataclasses.fields(Progress)}
    unknown = sorted(progress.keys() - fields)
    if unknown:
        return f"progress.{unknown[0]}"
    best = progress.pop("best_top1", -1.0)
    if not isinstance(best, (int, float)) or not math.isfinite(best):
        return f"progress.best_top1 is {best!r}"
    counts = {f"progress.{name}": (value, 0) for name, value in progress.items()}
    counts.update({f"config.{name}": (config.get(name), 1) for name in ("batch_size", "accumulation_step")})
    counts["world_size"] = (meta.get("world_size"), 1)
    counts["steps_per_epoch"] = (meta.get("steps_per_epoch", 1), 1)
    for name, (value, least) in counts.items():
        if type(value) is not int or value < least:  # True is not a count
            return f"{name} is {value!r}"
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        return f"class_names is {names!r}"
    return None


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
    checkpoint: Checkpoint, state: TrainState, config: Config, world_size: int, batches_per_epoch: int
) -> Progress:
    """Put the contents of a checkpoint into the state and return where the training was.

    With another number of devices or of images, the state is kept but the order of the data is not: training continues
    at the same fraction of the epoch.

    Args:
        checkpoint: accepted by `check_state`.
        state: of a training step made from the same configuration.
        world_size: devices of the present job.
        batches_per_epoch: micro-batches per epoch and rank in the present job.

    Raises:
        ConfigError: a setting that matters has changed and `allow_config_change` is off, or the tensors do not fit.
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
    _restore_tensors(checkpoint, state, world_size, strict=not differences)
    progress = _continued_progress(checkpoint.meta, config, world_size, batches_per_epoch)
    state.position.set_data(Tensor(progress.step, ms.int32))
    return progress


def _continued_progress(meta: dict[str, Any], config: Config, world_size: int, batches_per_epoch: int) -> Progress:
    """The progress in a checkpoint, in terms of the present number of devices and images."""
    progress = Progress(**{_EARLIER_NAMES.get(name, name): value for name, value in meta["progress"].items()})
    accumulation = config.step.accumulation_step
    images = config.data.batch_size * world_size
    accumulation_before = meta["config"]["accumulation_step"]
    images_before = meta["config"]["batch_size"] * meta["world_size"]
    # Checkpoints of early versions do not say how many micro-batches an epoch had.
    batches_before = meta.get("steps_per_epoch", batches_per_epoch * images // images_before)
    whole_epoch = batches_before // accumulation_before * accumulation_before
    # Equal, if the evaluation at the end of the epoch failed or the training diverged there: the trainer then ends the
    # epoch before it goes on. Micro-batches that do not fill a step are never counted.
    progress.micro_batches = min(progress.micro_batches, whole_epoch)
    if (images, accumulation, batches_per_epoch) != (images_before, accumulation_before, batches_before):
        # Rounded down, so a step that is not done in the checkpoint is not skipped.
        steps_per_epoch = batches_per_epoch // accumulation
        done = progress.micro_batches * steps_per_epoch // whole_epoch
        progress.micro_batches = done * accumulation
        progress.step = progress.epoch * steps_per_epoch + done
        logger.warning(
            "resuming with %d images per micro-batch on all devices and %d micro-batches per epoch, before %d and %d; "
            "weights and optimizer state are kept, the order of the data is not; continuing at step %d",
            images, batches_per_epoch, images_before, batches_before, progress.step,
        )  # fmt: skip
    return progress


def _restore_tensors(checkpoint: Checkpoint, state: TrainState, world_size: int, strict: bool) -> None:
    shapes, values = state.shapes(), dict(checkpoint.tensors)
    missing = sorted(shapes.keys() - values.keys())
    # Checkpoints of earlier versions hold the counter of random masks even where nothing uses it.
    unexpected = sorted(values.keys() - shapes.keys() - {RANDOM_COUNTER})
    misshaped = sorted(name for name in shapes.keys() & values.keys() if shapes[name] != values[name].shape)
    problems = []
    for kind, names in (("missing", missing), ("unexpected", unexpected), ("misshaped", misshaped)):
        if names:
            problems.append(f"{kind} {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}")
    if problems and strict:
        raise ConfigError(f"resume: {checkpoint.path} does not fit this training: {'; '.join(problems)}")
    if problems:
        logger.warning("resume: these tensors keep their initial values: %s", "; ".join(problems))
    for name in misshaped:
        del values[name]
    if RANDOM_COUNTER in values:
        values[RANDOM_COUNTER] = values[RANDOM_COUNTER] * world_size
    weights = {parameter.name: parameter.asnumpy() for parameter in state.network.get_parameters()}
    for name in shapes.keys() - values.keys():
        if name.startswith(EMA_PREFIX):  # the EMA starts here, not at this process's random weights
            weight = name[len(EMA_PREFIX) :]
            values[name] = values.get(weight, weights[weight])
    state.set_tensors(values)
    refresh_tables(state.network)


def share_state(state: TrainState, progress: Optional[Progress], device: Device) -> Progress:
    """Give every rank the state of rank 0, and each its own place in the random sequence.

    Args:
        state: on rank 0 the one to share.
        progress: on rank 0, where the training is; ignored elsewhere.
    """
    progress = progress if device.is_main and progress is not None else Progress()
    if device.world_size > 1:
        sent = broadcast_bytes(json.dumps(dataclasses.asdict(progress)).encode(), _PROGRESS_BYTES)
        progress = Progress(**json.loads(sent.rstrip(b"\0")))
        broadcast_parameters([*state.parameters, *(buffer.vector for buffer in state.buffers)])
        state.weights_changed()
        refresh_tables(state.network)
    counter = state.random_counter
    if counter is not None and device.rank:
        counter.set_data(Tensor(int(counter.asnumpy()) + device.rank, counter.dtype))
    return progress
