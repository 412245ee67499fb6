"""Classify image files with a checkpoint or an exported file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

import numpy as np
from mindspore import Tensor

from focal.checkpoint.weights import load_weights
from focal.config import Config
from focal.data import find_class_names, load_eval_image
from focal.errors import UserError
from focal.export.mindir import Runner, open_exported
from focal.models import create_model
from focal.models.inference import fold_position_bias


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of an image, best first, as (name, probability)."""

    path: str
    classes: tuple[tuple[str, float], ...]


def open_model(path: str, config: Config) -> Runner:
    """A .ckpt, .mindir or .onnx file as a function from images (B, 3, H, W) to logits (B, num_classes).

    Raises:
        UserError: the file is missing, damaged, or belongs to another network.
    """
    if Path(path).suffix != ".ckpt":
        return open_exported(Path(path))
    network = create_model(config)
    load_weights(network, path, config.run.use_ema)
    network.set_train(False)
    fold_position_bias(network)
    return lambda images: network(Tensor(images)).asnumpy()


def class_names(config: Config) -> list[str]:
    """Names of the classes from the data folder if it has as many as the network; else their numbers."""
    names = find_class_names(config.data.data_url)
    if len(names) == config.model.num_classes:
        return list(names)
    return [str(number) for number in range(config.model.num_classes)]


def classify(paths: list[str], run: Runner, config: Config, most: int = 5) -> Iterator[Prediction]:
    """Predictions for image files, one at a time.

    Raises:
        UserError: an image cannot be read, or the model gives another number of classes than configured.
    """
    names = class_names(config)
    for path in paths:
        logits = run(load_eval_image(path, config)[None])[0].astype(np.float64)  # (num_classes,)
        if len(logits) != len(names):
            raise UserError(f"num_classes: the model has {len(logits)} classes, the configuration {len(names)}")
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        best = np.argsort(-probabilities, kind="stable")[:most]
        yield Prediction(path, tuple((names[index], float(probabilities[index])) for index in best))
