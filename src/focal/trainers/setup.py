"""Builds the parts of a training: network with its weights, optimizer, step, state, files."""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path
from typing import Optional

import mindspore as ms
from mindspore import nn

from focal.checkpoint.class_names import ClassNames, check_class_names, class_name_difference, class_names_of
from focal.checkpoint.files import Checkpoint, read_checkpoint, write_checkpoint
from focal.checkpoint.paths import set_aside_earlier_results, set_newer_checkpoints_aside
from focal.checkpoint.resume import Progress, check_state, restore, share_state
from focal.checkpoint.series import BestCheckpoints, LastCheckpoints
from focal.checkpoint.weights import assign_weights, freeze_stages, select_weights, without_head
from focal.cloud.local import Storage
from focal.config import Config, save_config
from focal.data.transforms.on_device import PrepareImages
from focal.distributed.device import Device
from focal.distributed.machine import describe_machine
from focal.errors import UserError, one_line
from focal.files import remove_leftovers, temporary_path, write_json, writing
from focal.models import create_model
from focal.models.attention_choice import choose_attention
from focal.models.precision import apply_precision
from focal.trainers.losses import create_loss
from focal.trainers.lr_schedule import learning_rate_factor, learning_rates
from focal.trainers.metrics import MetricsFiles
from focal.trainers.optimizer import create_optimizer
from focal.trainers.plan import planned_world_size
from focal.trainers.teacher import build_teacher
from focal.trainers.train_one_step import TrainOneStep, trained_parameters
from focal.trainers.trainer import Outputs, steps_per_epoch

logger = logging.getLogger("focal")


def build_network(config: Config, class_names: ClassNames = None) -> nn.Cell:
    """The network to train: initialised from the seed, with pretrained weights, frozen stages, precision, attention.

    Args:
        class_names: of the training data.
    """
    ms.set_seed(config.run.seed)
    network = create_model(config)
    if config.run.pretrained is not None:
        _load_pretrained(network, config, class_names)
    frozen = freeze_stages(network, config.optim.freeze_stages)
    if frozen:
        logger.info("frozen: stem and first %d stage(s), %d tensors", config.optim.freeze_stages, len(frozen))
    apply_precision(network, config.step.amp_level, config.step.keep_bn_fp32)
    choose_attention(network, config.step, training=True)
    trained = trained_parameters(network)
    logger.info("%s: %.2f M parameters trained", config.model.arch, sum(p.size for p in trained) / 1e6)
    return network


def _load_pretrained(network: nn.Cell, config: Config, class_names: ClassNames) -> None:
    """Start from the weights of `pretrained`; a head for as many but other classes is re-initialised."""
    checkpoint = read_checkpoint(Path(str(config.run.pretrained)))
    weights = select_weights(checkpoint, config.run.use_ema)
    saved_names = class_names_of(checkpoint.meta)
    difference = class_name_difference(saved_names, class_names)
    as_many = saved_names and class_names and len(saved_names) == len(class_names)  # another number shows in the shapes
    if difference is not None and as_many and not config.run.allow_config_change:
        weights = without_head(weights)
        logger.warning(
            "pretrained %s: its classes are not those of the data: %s; the head is re-initialised. If every label "
            "still means the same class, --allow_config_change True keeps it",
            checkpoint.path, difference,
        )  # fmt: skip
    report = assign_weights(network, weights, str(checkpoint.path), new_head=True)
    logger.info("pretrained %s: %s", checkpoint.path, report)


def build_train_step(
    config: Config, network: nn.Cell, batches_per_epoch: int, device: Device, class_names: ClassNames = None
) -> TrainOneStep:
    """Optimizer, loss and step of a network.

    Args:
        network: see `build_network`.
        batches_per_epoch: micro-batches per epoch, on each rank.
        class_names: of the training data, which a teacher's must be.

    Raises:
        UserError: the teacher does not fit this training.
    """
    accumulation = config.step.accumulation_step
    factor = learning_rate_factor(config.data.batch_size, planned_world_size(config, device), accumulation)
    rates = learning_rates(config.optim, steps_per_epoch(batches_per_epoch, accumulation), factor)
    optimizer = create_optimizer(trained_parameters(network), config.optim, config.model, rates)
    logger.info(
        "%s, %s: base rate %.3g x %.4g (images per step / 512)",
        config.optim.optimizer, config.optim.lr_scheduler, config.optim.base_lr, factor,
    )  # fmt: skip
    prepare_images = PrepareImages(config.data)
    teacher = build_teacher(config, class_names)
    return TrainOneStep(network, create_loss(config.step), optimizer, config.step, device, prepare_images, teacher)


def resume_state(
    config: Config,
    train_step: TrainOneStep,
    batches_per_epoch: int,
    device: Device,
    output_folder: str,
    class_names: ClassNames = None,
) -> Progress:
    """Restore the step from the checkpoint that `resume` names, if any; all ranks then hold the state of rank 0.

    What `output_folder` holds of another training, or of this one after that checkpoint, is set aside, but not in a dry
    run.

    Args:
        batches_per_epoch: micro-batches per epoch, on each rank.
        class_names: of the training data.

    Raises:
        UserError: the checkpoint cannot be used, or settings that matter or the names of the classes have changed, or
            `output_folder` cannot be written.
    """
    progress = None
    if device.is_main:
        checkpoint = _find_checkpoint(config, output_folder)
        if checkpoint is not None:
            saved_names = class_names_of(checkpoint.meta)
            check_class_names("resume", checkpoint.path, saved_names, class_names, config.run.allow_config_change)
            world_size = planned_world_size(config, device)
            progress = restore(checkpoint, train_step.state(), config, world_size, batches_per_epoch)
            logger.info(
                "resumed from %s: epoch %d, micro-batch %d, step %d",
                checkpoint.path, progress.epoch, progress.micro_batches, progress.step,
            )  # fmt: skip
        if not config.run.dry_run:
            _start_from(checkpoint, output_folder, config.run.keep_checkpoint_max)  # now that `restore` accepts it
        if progress is None:
            progress = Progress(training=1 + secrets.randbelow(2**24 - 1))
    return share_state(train_step.state(), progress, device)


def _find_checkpoint(config: Config, output_folder: str) -> Optional[Checkpoint]:
    if config.run.resume is None:
        return None
    if config.run.resume == "auto":
        checkpoint = LastCheckpoints(Path(output_folder) / "checkpoints", config.run.keep_checkpoint_max).newest()
        if checkpoint is None:
            logger.info("resume auto: no checkpoint in %s yet, starting from the beginning", output_folder)
        return checkpoint
    checkpoint = read_checkpoint(Path(config.run.resume))
    check_state(checkpoint)
    return checkpoint


def _start_from(checkpoint: Optional[Checkpoint], output_folder: str, keep: int) -> None:
    """Make `checkpoint` the one that `--resume auto` finds, even if this training never saves another."""
    last = LastCheckpoints(Path(output_folder) / "checkpoints", keep)
    with writing("train_url", last.folder):
        newer = None if checkpoint is None else last.newer_than(checkpoint.path)
    if newer is not None:
        set_newer_checkpoints_aside(output_folder, newer)
        return
    if checkpoint is None:
        set_aside_earlier_results(output_folder)
        return
    copy = temporary_path(Path(output_folder) / "resumed.ckpt")
    try:
        write_checkpoint(copy, checkpoint.tensors, checkpoint.meta)
    except OSError as error:  # before anything has moved
        raise UserError(
            f"train_url: {output_folder} cannot take a copy of {checkpoint.path}, from which this training continues "
            f"({one_line(error)}); make room, or give another train_url"
        ) from None
    set_aside_earlier_results(output_folder)
    with writing("train_url", last.path(0)):
        last.folder.mkdir(exist_ok=True)
        os.replace(copy, last.path(0))


def open_outputs(
    config: Config, device: Device, progress: Progress, batches_per_epoch: int, storage: Storage
) -> Outputs:
    """Files of the training in the storage's output folder.

    Args:
        progress: from `resume_state`; later records in metrics.jsonl are removed.
        batches_per_epoch: micro-batches per epoch, on each rank.
        storage: where results go.

    Raises:
        UserError: the folder cannot be written.
    """
    folder, run = Path(storage.output_folder), config.run
    metrics = None
    if device.is_main:
        with writing("train_url", folder):
            folder.mkdir(parents=True, exist_ok=True)
            for written in (folder, folder / "checkpoints", folder / "best"):
                remove_leftovers(written)
            save_config(config, folder / "config.yaml")
            write_json(folder / "machine.json", describe_machine(device), indent=1)
            accumulation = config.step.accumulation_step
            epoch = progress.position(steps_per_epoch(batches_per_epoch, accumulation) * accumulation)
            metrics = MetricsFiles(str(folder), storage.tensorboard_folder, epoch)
    last = LastCheckpoints(folder / "checkpoints", run.keep_checkpoint_max)
    best = BestCheckpoints(folder / "best", run.keep_best_max, progress.training)
    return Outputs(metrics, last, best, storage.send_results, folder / "predictions.npz")
