"""A data layout -> sharded batches in a fixed order, through MindSpore's dataset engine.

Workers (engine.py) go through an explicit sequence of batch numbers; what a batch holds follows from its number alone
(batches.py, randomness.py), so order, shard and resuming are index arithmetic, and workers cannot change anything.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any, Iterator

import numpy as np

from focal.config.schema import Config
from focal.data.batches import EvalBatches, TrainBatches, TrainWindow
from focal.data.engine import iterate, make_dataset
from focal.data.folder import DataLayout
from focal.data.pipeline import EvalPipeline, TrainPipeline
from focal.errors import UserError

logger = logging.getLogger("focal")

TRAIN_COLUMNS = ("image", "target", "drop_path")
_NAMED_IN_LOG = 20  # unreadable training images named one by one; more are only counted


class TrainData:
    """Training batches of one rank.

    Attributes:
        num_images: of the whole split, all ranks together.
        steps_per_epoch: batches per rank and epoch; images that do not fill a batch on every rank wait for an epoch
            that puts them elsewhere.

    Args:
        config: the sections model, data, augment and run.seed are read.
        layout: from `check_data`.
        rank, world_size: this process among all.

    Raises:
        UserError: fewer images than one batch on every rank.
    """

    def __init__(self, config: Config, layout: DataLayout, rank: int = 0, world_size: int = 1) -> None:
        assert layout.train is not None, "check_data was not asked for train"
        self.class_names = layout.class_names
        self.num_images = len(layout.train)
        self._replaced: list[int] = []  # only ever appended to, which several workers may do at once
        self._told: set[int] = set()
        self._counted = 0
        self._source = layout.train
        self._data = config.data
        pipeline = TrainPipeline(config.augment, config.data, config.model, config.run.seed)
        batch = config.data.batch_size
        self.batches = TrainBatches(layout.train, pipeline, config.run.seed, batch, rank, world_size)
        self.steps_per_epoch = self.batches.steps
        if not self.steps_per_epoch:
            most = self.num_images // world_size
            way_out = f"set it to at most {most}" if most else f"use at most {self.num_images} devices"
            raise UserError(
                f"batch_size: {batch} on {world_size} device(s) is more than the {self.num_images} training images;"
                f" {way_out}"
            )

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Batches `first_step` .. `steps_per_epoch` - 1 of an epoch.

        Yields:
            images, NumPy float32 (B, 3, H, W), normalised and mixed; targets, NumPy float32 (B, num_classes); factors
            of drop path, NumPy float32 (2 * blocks, B), see `focal.data.transforms.drop_path`.

        Raises:
            UserError: images that cannot be read, and no others in their place.
        """
        if first_step >= self.steps_per_epoch:
            return
        columns = [*TRAIN_COLUMNS, "unreadable", "failed"]
        dataset = self._make_dataset(epoch, first_step, self.steps_per_epoch - first_step, columns)
        step = first_step
        for *batch, unreadable, failed in iterate(dataset):
            if failed[0]:
                self.batches.load(epoch, step)  # raises here what stopped the worker
                raise UserError(f"data_url: reading step {step} of epoch {epoch} failed, though not when tried again")
            self._report(unreadable)
            yield tuple(batch)
            step += 1

    def dataset(self, epoch: int, first_step: int = 0, epochs: int = 1) -> Any:
        """The same batches as a MindSpore dataset with columns image, target and drop_path (for sink mode).

        Args:
            epochs: how many it runs through, each in its own order; `first_step` shortens the first.
        """
        count = self.steps_per_epoch * epochs - first_step
        return self._make_dataset(epoch, first_step, count, list(TRAIN_COLUMNS))

    def _make_dataset(self, epoch: int, first_step: int, count: int, columns: list[str]) -> Any:
        first = epoch * self.steps_per_epoch + first_step
        window = TrainWindow(self.batches, first, count, report=None if len(columns) > 3 else self._report)
        return make_dataset(window, columns, self._data.num_parallel_workers, self._data.worker_processes)

    def _report(self, unreadable: np.ndarray) -> None:
        for index in unreadable[unreadable >= 0].tolist():
            self._replaced.append(index)
            if index not in self._told and len(self._told) < _NAMED_IN_LOG:
                self._told.add(index)
                logger.warning("unreadable training image, another takes its place: %s", self._source.name(index))

    @property
    def unreadable(self) -> dict[str, int]:
        """Path -> how often another image took its place, so far.

        In sink mode with `worker_processes` only the log knows: nothing but images and targets comes back.
        """
        return dict(Counter(self._source.name(index) for index in list(self._replaced)))

    def take_replaced(self) -> int:
        """How many times another image took the place of an unreadable one since the last call."""
        before, self._counted = self._counted, len(self._replaced)
        return self._counted - before


class EvalData:
    """Evaluation batches of one rank; over all ranks every readable image of val is valid exactly once.

    Attributes:
        num_images: of the whole split, all ranks together.
        steps: batches per pass, the same on all ranks.
        unreadable: paths this rank could not read in the last pass.
    """

    def __init__(self, config: Config, layout: DataLayout, rank: int = 0, world_size: int = 1) -> None:
        assert layout.val is not None, "check_data was not asked for val"
        self.class_names = layout.class_names
        self.num_images = len(layout.val)
        self.unreadable: list[str] = []
        self._source = layout.val
        self._data = config.data
        pipeline = EvalPipeline(config.augment, config.data, config.model.image_hw)
        batch = config.data.eval_batch_size or config.data.batch_size
        self.batches = EvalBatches(layout.val, pipeline, batch, rank, world_size)
        self.steps = self.batches.steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yields NumPy arrays: images float32 (b, 3, H, W), labels int32 (b,), valid float32 (b,)."""
        self.unreadable = []
        columns = ["image", "label", "valid", "unreadable"]
        dataset = make_dataset(self.batches, columns, self._data.num_parallel_workers, self._data.worker_processes)
        for images, labels, valid, unreadable in iterate(dataset):
            self.unreadable += [self._source.name(index) for index in unreadable[unreadable >= 0].tolist()]
            yield images, labels, valid
