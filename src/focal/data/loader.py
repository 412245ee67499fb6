"""Batches of a dataset, in a fixed order: sampler -> file -> decode -> transforms -> batch.

`TrainData.load_batch` and `EvalData.load_batch` show the way of an image from its file into a batch. They depend on
nothing but the batch's number, so workers may call them in any order (engine.py) and any batch can be made again.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from focal.config.schema import Config
from focal.data.decode import UnreadableImage, decode_rgb, read_file
from focal.data.engine import Batch, iterate, make_dataset
from focal.data.layout import DataLayout
from focal.data.sampler import REPLACEMENT, EvalSampler, TrainSampler, generator
from focal.data.transforms.boxes import Box, box_masks
from focal.data.transforms.normalize import normalize
from focal.data.transforms.pipeline import EvalTransforms, TrainTransforms
from focal.errors import UserError, printable

if TYPE_CHECKING:
    from mindspore.dataset import Dataset

logger = logging.getLogger("focal")

EVAL_COLUMNS = ("image", "label", "valid")
_REPLACEMENTS = 20  # how many other images are tried in place of an unreadable one
_NAMED_IN_LOG = 20  # how many unreadable training images the log names; further ones are only counted


class TrainBatch(NamedTuple):
    """A training batch, in the order in which the step takes it; what the device makes of it is in on_device.py.

    Attributes:
        images: uint8 (B, 3, H, W): pixels, or in erased boxes codes, see `focal.data.transforms.erasing`.
        targets: mixed and smoothed, float32 (B, num_classes).
        drop_path: factors, float32 (2 * blocks, B), see `focal.data.transforms.drop_path`.
        erased_rows, erased_columns: masks of the erased boxes, float32 (B, 1, H, R) and (B, 1, R, W) with R =
            `re_count`; a pixel is in one where their matrix product is not 0.
        partner_rows, partner_columns: float32 (B, 1, H, 1) and (B, 1, 1, W); their product is the fraction that a pixel
            takes from image B - 1 - i, see `focal.data.transforms.mixup`.
    """

    images: np.ndarray
    targets: np.ndarray
    drop_path: np.ndarray
    erased_rows: np.ndarray
    erased_columns: np.ndarray
    partner_rows: np.ndarray
    partner_columns: np.ndarray


class TrainData:
    """Training batches of one rank.

    Attributes:
        class_names: by label.
        known_class_names: the same, but None if the data does not name its classes.
        num_images: of the whole split, all ranks together.
        batches_per_epoch: batches per rank and epoch; images that do not fill a batch on every rank are left out,
            different ones in each epoch.
        unreadable: path -> how often another image has taken its place so far.

    Args:
        config: the sections model, data, augment and run.seed are used.
        layout: from `check_data`.
        rank, world_size: this process among all.

    Raises:
        UserError: there are too few images for one batch on every rank.
    """

    def __init__(self, config: Config, layout: DataLayout, rank: int = 0, world_size: int = 1) -> None:
        assert layout.train is not None, "check_data was not asked for train"
        self.class_names = layout.class_names
        self.known_class_names = layout.known_class_names
        self.num_images = len(layout.train)
        self._source = layout.train
        self._data = config.data
        self._seed = config.run.seed
        self._re_count = config.augment.re_count
        repeats = config.augment.aug_repeats
        self.sampler = TrainSampler(self._seed, self.num_images, config.data.batch_size, rank, world_size, repeats)
        self._transforms = TrainTransforms(config.augment, config.data, config.model, self._seed)
        self.unreadable: Counter[str] = Counter()
        self._replaced = self._replaced_before = 0
        self._error = ""
        self.batches_per_epoch = self.sampler.batches_per_epoch
        if not self.batches_per_epoch:
            most = self.num_images // world_size
            hint = f"set it to at most {most}" if most else f"use at most {self.num_images} devices"
            raise UserError(
                f"batch_size: {config.data.batch_size} on {world_size} device(s) is more than the {self.num_images} "
                f"training images; {hint}"
            )

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Batches `first_step` .. `batches_per_epoch` - 1 of an epoch.

        Yields:
            The NumPy arrays of a `TrainBatch`.

        Raises:
            UserError: an image could not be read, and none was found to take its place; or the machine is short of
                memory or file handles.
        """
        if first_step >= self.batches_per_epoch:
            return
        try:
            yield from iterate(self.dataset(epoch, first_step))
        except RuntimeError:
            if self._error:  # the engine wraps what `_report` raises in a page of text
                raise UserError(self._error) from None
            raise

    def dataset(self, epoch: int, first_step: int = 0, epochs: int = 1) -> Dataset:
        """The same batches as a MindSpore dataset with the columns of `TrainBatch`, for sink mode.

        If a batch cannot be made, the error is logged and iteration ends with a RuntimeError of MindSpore.

        Args:
            epochs: how many epochs it runs through, each in its own order; `first_step` shortens the first.
        """
        first = epoch * self.batches_per_epoch
        numbers = range(first + first_step, first + epochs * self.batches_per_epoch)
        workers, processes = self._data.num_parallel_workers, self._data.worker_processes
        return make_dataset(self._numbered_batch, numbers, TrainBatch._fields, self._report, workers, processes)

    def _numbered_batch(self, number: int) -> Batch:
        batch, unreadable = self.load_batch(*divmod(number, self.batches_per_epoch))
        return (*batch, unreadable)

    def load_batch(self, epoch: int, step: int) -> tuple[TrainBatch, np.ndarray]:
        """Make one batch.

        Returns:
            The batch, and the numbers of unreadable samples, int64 (B,), -1 in the places of readable ones.

        Raises:
            UserError: an image could not be read, and none was found to take its place; or the machine is short of
                memory or file handles.
        """
        indices, batch_number = self.sampler.indices(epoch, step), self.sampler.batch_number(step)
        copies = self.sampler.copies(step)
        images = np.empty((len(indices), 3, *self._transforms.image_hw), dtype=np.uint8)
        labels = np.empty(len(indices), dtype=np.int64)
        unreadable = np.full(len(indices), -1, dtype=np.int64)
        erased = []
        for place, index in enumerate(indices.tolist()):
            image, used = self._decode(index, epoch)
            labels[place] = self._source.labels[used]
            if used != index:
                unreadable[place] = index
            rng = self._transforms.sample_rng(epoch, index, int(copies[place]))
            image = self._transforms.crop(image, rng)
            image = self._transforms.augment(image, rng)
            erased.append(self._transforms.erase(image, rng, images[place]))
        erased_masks = box_masks(erased, self._re_count, self._transforms.image_hw)
        targets, partner_masks = self._transforms.mix(labels, epoch, batch_number)
        drop_path = self._transforms.drop_path(len(indices), epoch, batch_number)
        return TrainBatch(images, targets, drop_path, *erased_masks, *partner_masks), unreadable

    def _decode(self, index: int, epoch: int) -> tuple[Image.Image, int]:
        """The image of sample `index`, or of another one drawn to replace it, and the number of the sample used."""
        try:
            return decode_rgb(self._source.read(index)), index
        except UnreadableImage as error:
            reason = error
        rng = generator(self._seed, epoch, index, REPLACEMENT)
        for candidate in rng.integers(0, self.num_images, _REPLACEMENTS).tolist():
            try:
                return decode_rgb(self._source.read(candidate)), candidate
            except UnreadableImage:
                continue
        raise UserError(
            f"data_url: cannot read {printable(self._source.name(index))} ({reason}), nor {_REPLACEMENTS} others in "
            "its place; python scripts/check_dataset.py lists what is unreadable"
        )

    def _report(self, unreadable: np.ndarray, error: str) -> None:
        """Count and log the unreadable samples of a batch; raise if the batch could not be made."""
        if error:
            self._error = error
            logger.error(error)  # in sink mode nobody catches the exception
            raise UserError(error)
        for name in map(self._source.name, unreadable[unreadable >= 0].tolist()):
            if name not in self.unreadable and len(self.unreadable) < _NAMED_IN_LOG:
                logger.warning("unreadable training image, another takes its place: %s", printable(name))
            self.unreadable[name] += 1
            self._replaced += 1

    def take_replaced(self) -> int:
        """How many times another image took the place of an unreadable one since the last call."""
        before, self._replaced_before = self._replaced_before, self._replaced
        return self._replaced_before - before


class EvalData:
    """Evaluation batches of one rank; over all ranks every readable image of val is valid exactly once.

    All batches have the same size, and all ranks make the same number of them: what is missing is zeros with valid 0.

    Attributes:
        class_names: by label.
        num_images: of the whole split, all ranks together.
        steps: batches per pass.
        unreadable: paths that this rank could not read in the last pass.
    """

    def __init__(self, config: Config, layout: DataLayout, rank: int = 0, world_size: int = 1) -> None:
        assert layout.val is not None, "check_data was not asked for val"
        self.class_names = layout.class_names
        self.num_images = len(layout.val)
        self.unreadable: list[str] = []
        self._error = ""
        self._folder = layout.folder
        self._source = layout.val
        self._data = config.data
        self._batch_size = config.data.eval_batch_size or config.data.batch_size
        self._sampler = EvalSampler(self.num_images, self._batch_size, rank, world_size)
        self._transforms = EvalTransforms(config.augment, config.data, config.model)
        self.steps = self._sampler.steps

    def __len__(self) -> int:
        return self.steps

    def samples(self, step: int) -> np.ndarray:
        """The numbers of the images in batch `step` of this rank, readable or not: int64, (b,) or shorter."""
        return self._sampler.indices(step)

    def sample_name(self, index: int) -> str:
        """The path of an image relative to the data folder; see `ImageSource.name`."""
        return os.path.relpath(self._source.name(index), self._folder)

    def __iter__(self) -> Iterator[Batch]:
        """Yields NumPy arrays: images uint8 (b, 3, H, W), labels int32 (b,), valid float32 (b,).

        Raises:
            UserError: the machine is short of memory or file handles.
        """
        self.unreadable = []
        workers, processes = self._data.num_parallel_workers, self._data.worker_processes
        dataset = make_dataset(self.load_batch, range(self.steps), EVAL_COLUMNS, self._report, workers, processes)
        try:
            yield from iterate(dataset)
        except RuntimeError:
            if self._error:
                raise UserError(self._error) from None
            raise

    def load_batch(self, step: int) -> Batch:
        """Make one batch: images, labels and valid as above, and the numbers of unreadable samples, int64 (b,)."""
        images = np.zeros((self._batch_size, 3, *self._transforms.image_hw), dtype=np.uint8)
        labels = np.zeros(self._batch_size, dtype=np.int32)
        valid = np.zeros(self._batch_size, dtype=np.float32)
        unreadable = np.full(self._batch_size, -1, dtype=np.int64)
        for place, index in enumerate(self._sampler.indices(step).tolist()):
            try:
                self._transforms(decode_rgb(self._source.read(index)), images[place])
            except UnreadableImage:
                unreadable[place] = index
                continue
            labels[place] = self._source.labels[index]
            valid[place] = 1.0
        return images, labels, valid, unreadable

    def _report(self, unreadable: np.ndarray, error: str) -> None:
        if error:
            self._error = error
            raise UserError(error)
        self.unreadable += map(self._source.name, unreadable[unreadable >= 0].tolist())


def load_eval_image(path: str, config: Config) -> np.ndarray:
    """One image file as the network sees it in evaluation: normalised, float32 (3, H, W).

    Raises:
        UserError: the file cannot be read.
    """
    pixels = np.empty((3, *config.model.image_hw), dtype=np.uint8)
    try:
        image = decode_rgb(read_file(path))
    except UnreadableImage as error:
        raise UserError(f"image: cannot read {printable(path)} ({error})") from None
    EvalTransforms(config.augment, config.data, config.model)(image, pixels)
    return normalize(pixels, config.data)


def blank_batch(config: Config) -> TrainBatch:
    """Zeros with the shapes and types of a training batch, to compile the step for."""
    batch, model = config.data.batch_size, config.model
    nothing: list[list[Box]] = [[]] * batch
    return TrainBatch(
        np.zeros((batch, model.in_channels, *model.image_hw), np.uint8),
        np.zeros((batch, model.num_classes), np.float32),
        np.zeros((2 * sum(model.depths), batch), np.float32),
        *box_masks(nothing, config.augment.re_count, model.image_hw),
        *box_masks(nothing, 1, model.image_hw),
    )
