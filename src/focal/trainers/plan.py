"""What a training would do, as a dry run prints it."""

from __future__ import annotations

import math
import os
import textwrap
from pathlib import Path

from mindspore import nn

from focal.checkpoint.paths import folder_for_earlier_results
from focal.checkpoint.resume import Progress
from focal.checkpoint.train_state import TrainState
from focal.cloud.local import Storage
from focal.config import Config
from focal.data import EvalData, TrainData
from focal.distributed.device import Device
from focal.errors import UserError
from focal.models.macs import actual_macs
from focal.trainers.buckets import BUCKETS
from focal.trainers.lr_schedule import learning_rate_factor, learning_rates
from focal.trainers.teacher import TEACHER
from focal.trainers.train_one_step import TrainOneStep, trained_parameters
from focal.trainers.trainer import steps_per_epoch

_MB = 10**6
_KINDS = ("weights", "moment", "ema", "accumulated")  # kinds of the flat vectors beside the network's own parameters
_FLOAT32 = 4  # bytes; weights and all state of a training are float32 at every amp_level


def planned_world_size(config: Config, device: Device) -> int:
    """Processes of the job; in a dry run, which is one process, those that the training would have."""
    return max(device.world_size, config.run.device_num) if config.run.dry_run else device.world_size


def describe_plan(
    config: Config,
    device: Device,
    train_step: TrainOneStep,
    train_data: TrainData,
    eval_data: EvalData,
    progress: Progress,
    storage: Storage,
) -> str:
    """A line each about network, devices, data, steps, learning rate, memory, start and files of a training.

    Args:
        train_step: built, with its state restored.
        train_data, eval_data: for the devices that the training would have.
        progress: where the training would start.
        storage: says where results would go.

    Raises:
        UserError: the output folder cannot be written.
    """
    world_size = planned_world_size(config, device)
    lines = {
        "network": _network(config, train_step.network),
        "devices": f"{world_size} x {device.target}, amp_level {config.step.amp_level}; device {config.run.device_id} "
        "was opened, others were not",
        "data": f"{train_data.num_images:,} images of train and {eval_data.num_images:,} of val, "
        f"{len(train_data.class_names)} classes, in {config.data.data_url}",
        **_schedule(config, world_size, train_data.batches_per_epoch),
        "memory": _memory(train_step),
        "start": _start(progress, storage),
        "files": _files(config, train_step.state(), storage),
    }
    text = [_paragraph(f"  {name:<15}", line) for name, line in lines.items()]
    return "\n".join(["dry run: nothing was trained, nothing was written", *text])


def _paragraph(name: str, text: str) -> str:
    indent = " " * len(name)
    return textwrap.fill(text, 110, initial_indent=name, subsequent_indent=indent, break_long_words=False,
                         break_on_hyphens=False)  # fmt: skip


def _network(config: Config, network: nn.Cell) -> str:
    model, height_width = config.model, " x ".join(map(str, config.model.image_hw))
    total, trained = (sum(p.size for p in parameters) for parameters in _parameters(network))
    return (
        f"{model.arch}, {height_width} pixels, {model.num_classes} classes: {total:,} parameters, of which {trained:,} "
        f"are trained; {actual_macs(model) / 1e6:,.1f} M multiply-adds per image, forward"
    )


def _parameters(network: nn.Cell) -> tuple[list, list]:
    """All parameters of a network, and those that are trained."""
    return list(network.get_parameters()), list(trained_parameters(network))


def _schedule(config: Config, world_size: int, batches_per_epoch: int) -> dict[str, str]:
    """The lines about steps, learning rate and warm-up."""
    batch_size, micro_batches, optim = config.data.batch_size, config.step.accumulation_step, config.optim
    per_epoch = steps_per_epoch(batches_per_epoch, micro_batches)
    factor = learning_rate_factor(batch_size, world_size, micro_batches)
    rates = learning_rates(optim, per_epoch, factor)
    total = min(len(rates), config.run.max_steps or len(rates))
    return {
        "steps": f"{per_epoch:,} per epoch, of {batch_size * world_size * micro_batches:,} images ({batch_size} per "
        f"micro-batch x {world_size} device(s) x {micro_batches} micro-batch(es)); {total:,} in all, "
        f"{optim.epochs} epochs",
        "learning rate": f"from {rates[0]:.4g} up to {rates.max():.4g} and down to {rates[-1]:.4g}: {optim.optimizer}, "
        f"{optim.lr_scheduler}, base_lr {optim.base_lr:.4g} x {factor:.4g} (images per step / 512)",
        "warm-up": f"{optim.warmup_length} epochs, {optim.warmup_length * per_epoch:,} steps; "
        f"cool-down {optim.cool_length} epochs",
    }


def _memory(train_step: TrainOneStep) -> str:
    """What the state of a training takes on each device: 4 bytes for each number in it.

    Not the activations between forward and backward pass: they depend on the compiler, and for large images and batches
    are most of the memory.
    """
    network, trained = _parameters(train_step.network)
    own = {id(parameter) for parameter in network}
    others = [parameter for parameter in train_step.get_parameters() if id(parameter) not in own]
    buckets = {kind: sum(p.size for p in others if p.name.startswith(f"{BUCKETS}{kind}")) for kind in _KINDS}
    gradients = sum(p.size for p in trained)
    parts = {
        "weights": sum(p.size for p in network) + buckets["weights"],
        "optimizer": buckets["moment"],
        "EMA": buckets["ema"],
        "gradients": gradients + buckets["accumulated"],
    }
    teacher = sum(p.size for p in others if p.name.startswith(TEACHER))
    if teacher:
        parts["teacher"] = teacher
    sizes = ", ".join(f"{name} {count * _FLOAT32 / _MB:,.1f}" for name, count in parts.items())
    total = sum(parts.values()) * _FLOAT32 / _MB
    return f"{total:,.1f} MB on each device ({sizes}), and the activations, which are not estimated"


def _start(progress: Progress, storage: Storage) -> str:
    if progress.step:
        return f"continues at step {progress.step:,}, epoch {progress.epoch}, micro-batch {progress.micro_batches}"
    earlier = folder_for_earlier_results(storage.output_folder)
    return "a new training" if earlier is None else f"a new training; results of an earlier one would move to {earlier}"


def _files(config: Config, state: TrainState, storage: Storage) -> str:
    folder, run = Path(storage.output_folder), config.run
    _check_writable(folder)
    numbers = [math.prod(shape) for shape in state.shapes().values()]
    names = ["config.yaml", "machine.json", "metrics.jsonl", "log/", "predictions.npz"]
    names += ["report.html"] if run.report else []
    checkpoints = f"checkpoints/ ({run.keep_checkpoint_max} of {sum(numbers) * _FLOAT32 / _MB:,.1f} MB)"
    best = f"best/ ({run.keep_best_max}, without the optimizer)"
    return f"{folder}: {', '.join([*names, checkpoints, best])}; {storage.tensorboard_folder}"


def _check_writable(folder: Path) -> None:
    """Look without writing whether the folder, or the nearest one above it that exists, lets files be made."""
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"train_url: {nearest} is not a folder that can be written; give another --train_url")
