"""Images per second of the training data pipeline, of each stage and as a whole."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import statistics
import time
from pathlib import Path
from typing import Any, Callable

import numpy as np
from PIL import Image

from focal.config.schema import Config
from focal.data import TrainData, check_data, with_classes_of
from focal.data.decode import UnreadableImage, decode_rgb
from focal.data.engine import iterate
from focal.data.folder import ImageSource
from focal.data.layout import DataLayout
from focal.data.transforms.pipeline import TrainTransforms
from focal.errors import UserError
from tools.benchmark.timing import add_peer_arguments, take_turns

logger = logging.getLogger("focal")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=4096, help="images for the whole pipeline")
    parser.add_argument("--stage_images", type=int, default=512, help="images for each single stage")
    add_peer_arguments(parser, rounds=1)


def run(config: Config, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure and log a table; returns the figures, which are also written to `--json` if it is given."""
    if min(arguments.images, arguments.stage_images) < 1:
        raise UserError(f"images: {arguments.images} and {arguments.stage_images} must be at least 1")
    if arguments.rounds < 1:
        raise UserError(f"rounds: {arguments.rounds} must be at least 1")
    layout = check_data(config, config.data.data_url, splits=("train",))
    config = with_classes_of(layout, config)
    result: dict[str, Any] = {
        "benchmark": "data",
        "batch_size": config.data.batch_size,
        "image_size": list(config.model.image_hw),
        "auto_augment": config.augment.auto_augment,
        "workers": config.data.num_parallel_workers,
        "worker_processes": config.data.worker_processes,
        "cpus": os.cpu_count(),
        "stages_images_per_second": measure_stages(config, layout, arguments.stage_images),
        **measure_rounds(config, layout, arguments),
    }
    kind = "processes" if config.data.worker_processes else "threads"
    for stage, rate in result["stages_images_per_second"].items():
        logger.info("%-22s %8.0f images/s in one thread", stage, rate)
    logger.info(
        "%-22s %8.0f images/s with %d %s", "whole pipeline", result["images_per_second"], result["workers"], kind
    )
    if arguments.peer:
        logger.info("%-22s %8.0f images/s", "peer", result["peer_images_per_second"])
        logger.info("%-22s %8.2f (%.2f to %.2f)", "ratio", result["ratio_to_peer"], *result["ratio_to_peer_range"])
    if config.run.json:
        Path(config.run.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def measure_stages(config: Config, layout: DataLayout, count: int) -> dict[str, float]:
    """Images per second of each stage alone, in one thread, on `count` images (repeated if there are fewer)."""
    source = layout.train
    assert source is not None
    transforms = TrainTransforms(config.augment, config.data, config.model, config.run.seed)
    batch = config.data.batch_size
    count = -(-count // batch) * batch
    files = readable_files(source, count)
    rngs = [transforms.sample_rng(0, index) for index in range(count)]
    images = [Image.new("RGB", (1, 1))] * count
    pixels = np.zeros((batch, 3, *config.model.image_hw), dtype=np.uint8)
    labels = np.resize(source.labels, batch)

    def decode_crop(index: int) -> None:
        images[index] = transforms.crop(decode_rgb(files[index]), rngs[index])

    def augment(index: int) -> None:
        images[index] = transforms.augment(images[index], rngs[index])

    def erase(index: int) -> None:
        transforms.erase(images[index], rngs[index], pixels[index % batch])

    def mix(index: int) -> None:
        if index % batch == 0:
            transforms.mix(labels, 0, index // batch)

    stages: tuple[Callable[[int], None], ...] = (decode_crop, augment, erase, mix)
    names = ("decode+crop", "augment", "erase", "targets")
    return {name: count / _seconds(stage, count) for name, stage in zip(names, stages)}


def readable_files(source: ImageSource, count: int) -> list[bytes]:
    """The first `count` readable image files, repeated if there are fewer.

    Raises:
        UserError: no image can be read.
    """
    files: list[bytes] = []
    for index in range(len(source)):
        if len(files) == count:
            break
        with contextlib.suppress(UnreadableImage):
            data = source.read(index)
            decode_rgb(data)
            files.append(data)
    if not files:
        raise UserError("data_url: none of the training images can be read; see scripts/check_dataset.py")
    return [files[number % len(files)] for number in range(count)]


def _seconds(function: Callable[[int], None], count: int) -> float:
    start = time.perf_counter()
    for index in range(count):
        function(index)
    return time.perf_counter() - start


def measure_rounds(config: Config, layout: DataLayout, arguments: argparse.Namespace) -> dict[str, Any]:
    """Medians over `rounds` measurements of the pipeline, each followed by one of the peer if there is one.

    The ratio to the peer is the median of the rounds' ratios, since a machine's speed may change from round to round.
    """
    rates, peer = take_turns(lambda: measure_pipeline(config, layout, arguments.images), arguments)
    result: dict[str, Any] = {"images_per_second": statistics.median(rates)}
    if peer:
        ratios = [ours / other for ours, other in zip(rates, peer)]
        result["peer_images_per_second"] = statistics.median(peer)
        result["ratio_to_peer"] = statistics.median(ratios)
        result["ratio_to_peer_range"] = [min(ratios), max(ratios)]
    return result


def measure_pipeline(config: Config, layout: DataLayout, images: int) -> float:
    """Images per second that the engine delivers, measured after each worker has delivered one batch."""
    data = TrainData(config, layout)
    warm_up = config.data.num_parallel_workers
    steps = max(1, images // config.data.batch_size)
    epochs = -(-(warm_up + steps) // data.batches_per_epoch)
    batches = iterate(data.dataset(0, epochs=epochs))
    for _ in range(warm_up):
        next(batches)
    start = time.perf_counter()
    for _ in range(steps):
        next(batches)
    seconds = time.perf_counter() - start
    batches.close()
    return steps * config.data.batch_size / seconds
