"""Classify image files, or take features from them, with a checkpoint or an exported file.

Shapes: B images per batch (the last one is padded), C classes.
"""

from __future__ import annotations

import csv
import dataclasses
import glob
import io
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Optional, Union

import numpy as np
from mindspore import Tensor, nn

from focal.checkpoint.class_names import ClassNames, class_name_difference, class_names_of
from focal.checkpoint.files import Checkpoint, read_checkpoint
from focal.checkpoint.weights import load_checkpoint
from focal.config import Config
from focal.data import find_class_names, load_eval_image
from focal.data.folder import IMAGE_EXTENSIONS, is_image_name
from focal.errors import UserError, printable
from focal.export.description import ModelDescription, relevant_settings
from focal.export.mindir import Runner, open_exported, read_description
from focal.models import create_model
from focal.models.focal_transformer import FocalTransformer
from focal.models.inference import fold_position_bias

TOP_K = 5
FORMATS = ("table", "csv", "json")
_LONGEST_NAME = 30  # characters of a class name in a table; CSV and JSON have all of it


@dataclasses.dataclass(frozen=True)
class ModelFile:
    """A checkpoint or an exported file.

    Attributes:
        path: the file.
        description: what it says of itself.
        checkpoint: its contents; None for an exported file, which is opened by `open_model`.
    """

    path: Path
    description: ModelDescription
    checkpoint: Optional[Checkpoint]


class ScoredClass(NamedTuple):
    """A class and its probability."""

    label: int
    name: str
    probability: float


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The likeliest classes of an image, best first."""

    image: str
    classes: tuple[ScoredClass, ...]


def read_model_file(path: str) -> ModelFile:
    """Read a .ckpt, .mindir or .onnx file as far as needed to know what it holds.

    Raises:
        UserError: the file is missing, damaged or of another kind, or the package that reads it is missing.
    """
    file = Path(path)
    if file.suffix in (".mindir", ".onnx"):
        return ModelFile(file, read_description(file), None)
    if file.suffix != ".ckpt":
        raise UserError(f"pretrained: {path} is neither a checkpoint (.ckpt) nor an exported file (.onnx, .mindir)")
    checkpoint = read_checkpoint(file)
    settings = relevant_settings((checkpoint.meta or {}).get("config", {}))
    return ModelFile(file, ModelDescription(settings, class_names_of(checkpoint.meta)), checkpoint)


def open_model(file: ModelFile, config: Config) -> Runner:
    """The model as a function from images (B, 3, H, W) to logits (B, C).

    Raises:
        UserError: the file is damaged, or belongs to another network.
    """
    if file.checkpoint is None:
        return open_exported(file.path)
    return _run_in_mindspore(load_network(file.checkpoint, config))


def open_features(file: ModelFile, config: Config, features: str) -> Runner:
    """The model as a function from images (B, 3, H, W) to features.

    Args:
        features: `pooled` for what the head sees, (B, channels); `stage0`, `stage1`, ... for the map of a stage before
            its downsampling, (B, channels, height, width).

    Raises:
        UserError: `features` is unknown, or the file is not a checkpoint of this network.
    """
    known = ("pooled", *(f"stage{index}" for index in range(len(config.model.depths))))
    if features not in known:
        raise UserError(f"features: {features!r} is not one of {', '.join(known)}")
    if file.checkpoint is None:
        raise UserError(f"features: {file.path} is an exported file, which gives logits only; use the checkpoint")
    if features == "pooled":
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, num_classes=0))
        return _run_in_mindspore(load_network(file.checkpoint, config))
    return _run_in_mindspore(StageMap(load_network(file.checkpoint, config), known.index(features) - 1))


def load_network(checkpoint: Checkpoint, config: Config) -> FocalTransformer:
    """The network of a checkpoint, for inference in float32.

    Raises:
        UserError: the checkpoint is another network's.
    """
    network = create_model(config)
    load_checkpoint(network, checkpoint, config.run.use_ema)
    network.set_train(False)
    fold_position_bias(network)
    return network


def _run_in_mindspore(cell: nn.Cell) -> Runner:
    cell.set_train(False)
    return lambda images: cell(Tensor(images)).asnumpy()


class StageMap(nn.Cell):
    """Images (B, 3, H, W) -> the map (B, channels, height, width) of one stage, before its downsampling."""

    def __init__(self, network: FocalTransformer, stage: int) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.before, self.last = nn.CellList(list(network.layers)[:stage]), network.layers[stage]

    def construct(self, images: Tensor) -> Tensor:
        x = self.network.embed(images)  # (B, H * W, C)
        for stage in self.before:
            x = stage(x)
        return self.last.as_map(self.last.run_blocks(x))  # (B, C, H, W)


def names_of_classes(file: ModelFile, config: Config, data_named: bool) -> tuple[str, ...]:
    """Names of the classes: those of the model file, else of a data folder with as many, else their numbers.

    Args:
        data_named: the user has named a data folder, so it must not contradict the model file.

    Raises:
        UserError: it does.
    """
    known = file.description.class_names
    found: ClassNames = find_class_names(config.data.data_url) if data_named or known is None else ()
    if known is not None:
        difference = class_name_difference(known, found or None)
        if difference is not None:
            raise UserError(
                f"data_url: the class names of {config.data.data_url} differ from those of {file.path}: {difference}; "
                "omit --data_url to see the model's own names"
            )
        return known
    if found and len(found) == config.model.num_classes:
        return found
    return tuple(str(label) for label in range(config.model.num_classes))


def find_images(inputs: Sequence[str]) -> list[str]:
    """Paths of the images that `inputs` name: files, folders with all images below them, and patterns (`**` too).

    Hidden files and folders count only where they are named themselves.

    Raises:
        UserError: one of them names no image.
    """
    paths: list[str] = []
    for given in inputs:
        if os.path.isdir(given):
            found = list(_files_below(given))
        elif os.path.exists(given):
            paths.append(given)  # whatever its name ends in
            continue
        elif glob.has_magic(given):
            found = glob.glob(given, recursive=True)
        else:
            raise UserError(f"image: {given} does not exist")
        found = sorted(path for path in found if is_image_name(os.path.basename(path)))
        if not found:
            raise UserError(f"image: {given} names no image; known are {', '.join(sorted(IMAGE_EXTENSIONS))}")
        paths += found
    return paths


def _files_below(folder: str) -> Iterator[str]:
    """Paths of the files in `folder` and below, without those in hidden folders."""
    for current, subfolders, names in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        yield from (os.path.join(current, name) for name in names)


def run_batches(
    paths: Sequence[str], run: Runner, config: Config, unreadable: list[str]
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Run a model on image files, `eval_batch_size` (else `batch_size`) at a time.

    All batches have one size, so that a network is compiled once.

    Args:
        unreadable: takes a sentence for each image that cannot be read; the rest goes on without it.

    Yields:
        The images of a batch that could be read, and a row of outputs for each.

    Raises:
        UserError: outputs are not finite.
    """
    size = min(config.data.eval_batch_size or config.data.batch_size, len(paths))

    def load(path: str) -> Union[np.ndarray, UserError]:
        try:
            return load_eval_image(path, config)
        except UserError as error:
            return error

    with ThreadPoolExecutor(config.data.num_parallel_workers) as pool:
        for start in range(0, len(paths), size):
            chunk = paths[start : start + size]
            loaded = list(zip(chunk, pool.map(load, chunk)))
            unreadable += [str(image) for _, image in loaded if isinstance(image, UserError)]
            readable = [(path, image) for path, image in loaded if not isinstance(image, UserError)]
            if not readable:
                continue
            images = np.zeros((size, 3, *config.model.image_hw), np.float32)
            images[: len(readable)] = [image for _, image in readable]
            outputs = run(images)[: len(readable)]
            finite = np.isfinite(outputs).reshape(len(readable), -1).all(1)
            if not finite.all():
                path = readable[int(finite.argmin())][0]
                raise UserError(
                    f"pretrained: the model's outputs for {printable(path)} are not finite; its weights are damaged"
                )
            yield [path for path, _ in readable], outputs


def classify(
    paths: Sequence[str], run: Runner, config: Config, names: Sequence[str], top_k: int, unreadable: list[str]
) -> Iterator[Prediction]:
    """The `top_k` likeliest classes of each image that can be read; see `run_batches`.

    Raises:
        UserError: outputs are not finite, or the model has another number of classes than there are names.
    """
    for images, logits in run_batches(paths, run, config, unreadable):
        if logits.shape[1] != len(names):
            raise UserError(f"num_classes: the model has {logits.shape[1]} classes, the configuration {len(names)}")
        shifted = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
        probabilities = shifted / shifted.sum(1, keepdims=True)  # (B, C)
        for image, row in zip(images, probabilities):
            best = np.argsort(-row, kind="stable")[:top_k].tolist()
            yield Prediction(image, tuple(ScoredClass(label, names[label], float(row[label])) for label in best))


def format_predictions(predictions: Sequence[Prediction], file_format: str) -> str:
    """The predictions as text.

    Args:
        file_format: `table` has a line per image; `csv` a line per image and class; `json` an object per image. JSON
            alone has every name as it is; see `printable`.
    """
    if file_format == "json":
        return json.dumps(
            [{"image": row.image, "classes": [scored._asdict() for scored in row.classes]} for row in predictions],
            indent=1,
        )
    if file_format == "csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("image", "rank", *ScoredClass._fields))
        for row in predictions:
            for rank, scored in enumerate(row.classes, 1):
                names = printable(row.image), rank, scored.label, printable(scored.name)
                writer.writerow((*names, f"{scored.probability:.6f}"))
        return text.getvalue().rstrip("\n")
    return _table(predictions)


def _table(predictions: Sequence[Prediction]) -> str:
    """One line per image: its path, then name and probability of each class, in columns."""
    rows = [
        [
            printable(row.image),
            *(f"{100 * scored.probability:5.1f} % {_shorten(scored.name)}" for scored in row.classes),
        ]
        for row in predictions
    ]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def _shorten(name: str) -> str:
    name = printable(name)
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..."
