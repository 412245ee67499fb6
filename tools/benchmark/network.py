"""Speed of a network: inference, training step, exported files. Inputs are random; weights are as initialised."""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor, nn

from focal.config.schema import Config
from focal.data import blank_batch
from focal.data.transforms.drop_path import draw_drop_path
from focal.distributed.device import setup_device
from focal.distributed.memory import compile_ahead
from focal.export.mindir import SUFFIXES, export_network, open_exported
from focal.models import create_model
from focal.models.inference import prepare_for_evaluation
from focal.models.macs import actual_macs
from tools.benchmark import timing

logger = logging.getLogger("focal")

add_arguments = timing.add_arguments


def run(config: Config, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure what `arguments.command` names (infer, train or export), report it, write JSON if asked."""
    setup_device(config.run)
    steps = {"infer": inference_step, "train": training_step, "export": exported_step}
    # Backward passes take two products for each one of the forward pass.
    passes = 3 if arguments.command == "train" else 1
    flops = passes * 2 * actual_macs(config.model) * config.data.batch_size
    measured = timing.measure(
        arguments.command,
        lambda: steps[arguments.command](config),
        config.data.batch_size,
        flops,
        config.run.device_target,
        arguments,
    )
    result = {
        "arch": config.model.arch,
        "batch_size": config.data.batch_size,
        "image_size": list(config.model.image_hw),
        "amp_level": config.step.amp_level,
        "device_target": config.run.device_target,
        **({"file_format": config.run.file_format} if arguments.command == "export" else {}),
        **measured,
    }
    timing.report(result, config.run.json)
    return result


def random_images(config: Config) -> np.ndarray:
    """A batch of network inputs, float32 (B, 3, H, W)."""
    shape = (config.data.batch_size, config.model.in_channels, *config.model.image_hw)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def inference_step(config: Config) -> timing.Subject:
    """A forward pass, as eval.py makes it, with the position bias folded."""
    network = create_model(config)
    prepare_for_evaluation(network, config.step)
    images = Tensor(random_images(config))
    return timing.Subject(lambda: compile_ahead(network, images), lambda: network(images).asnumpy())


def training_step(config: Config) -> timing.Subject:
    """The whole training step: normalise, erase, mix, forward, backward, clip, optimizer, EMA."""
    from focal.distributed.device import Device
    from focal.trainers.setup import build_network, build_train_step

    network: nn.Cell = build_network(config)
    step = build_train_step(config, network, 1000, Device(target=config.run.device_target))
    step.set_train(True)
    rng, blank, classes = np.random.default_rng(0), blank_batch(config), config.model.num_classes
    arrays = blank._replace(
        images=rng.integers(0, 256, blank.images.shape, dtype=np.uint8),
        targets=np.full_like(blank.targets, 1 / classes),
        drop_path=draw_drop_path(config.model.drop_path_rates, config.data.batch_size, rng),
    )
    batch = tuple(map(Tensor, arrays))
    return timing.Subject(lambda: compile_ahead(step, *batch), lambda: step(*batch).asnumpy())


def exported_step(config: Config) -> timing.Subject:
    """The exported file (`file_format`), run by the runtime that scripts/predict.py uses."""
    images = random_images(config)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"network{SUFFIXES[config.run.file_format]}"
        export_network(create_model(config), config, path, images[:1])
        runner = open_exported(path)
    return timing.Subject(lambda: None, lambda: runner(images))
