"""A data layout -> sharded batches in a fixed order, through MindSpore's dataset engine.

The engine runs workers over an explicit sequence of batch numbers; what a batch holds follows from its number alone
(randomness.py), so order, shard and resuming are index arithmetic and workers cannot change anything.
"""

from __future__ import annotations

import logging
from typing import Any, Iterator

import numpy as np

from src.config.schema import Config
from src.data.decode import UnreadableImage, decode_rgb
from src.data.layout import DataLayout
from src.data.pipeline import EvalPipeline, TrainPipeline
from src.data.randomness import REPLACEMENT, epoch_order, generator
from src.data.sources import ImageSource
from src.errors import UserError

logger = logging.getLogger("focal")

_REPLACEMENTS = 20  # tries for a readable stand-in before giving up


class TrainBatches:
    """Batches of one rank as a sequence: entry k is step k % steps of epoch k // steps, after an offset."""

    def __init__(self, source: ImageSource, pipeline: TrainPipeline, seed: int, batch: int, rank: int, world: int):
        self._source = source
        self._pipeline = pipeline
        self._seed = seed
        self._batch = batch
        self._rank = rank
        self._world = world
        self.steps = len(source) // (batch * world)
        self._order = (-1, np.empty(0, dtype=np.int64))

    def indices(self, epoch: int, step: int) -> np.ndarray:
        """Samples of this rank's batch: the ranks' batches of a step are consecutive pieces of the epoch's order."""
        if self._order[0] != epoch:
            self._order = (epoch, epoch_order(self._seed, epoch, len(self._source)))
        order = self._order[1]
        start = (step * self._world + self._rank) * self._batch
        return order[start : start + self._batch]

    def load(self, epoch: int, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Images float32 (B, 3, H, W), targets float32 (B, classes), unreadable sample numbers int64 (B,) or -1."""
        indices = self.indices(epoch, step)
        images, rngs, labels = [], [], []
        unreadable = np.full(self._batch, -1, dtype=np.int64)
        for place, index in enumerate(indices):
            image, used = self._readable(int(index), epoch)
            if used != index:
                unreadable[place] = index
            rng = self._pipeline.sample_rng(epoch, int(index))
            images.append(self._pipeline.sample(image, rng))
            rngs.append(rng)
            labels.append(self._source.labels[used])
        batch_index = step * self._world + self._rank
        pixels, targets = self._pipeline.batch(images, rngs, np.array(labels), epoch, batch_index)
        return pixels, targets, unreadable

    def _readable(self, index: int, epoch: int) -> tuple[Any, int]:
        """The image of sample `index`, or of a stand-in drawn for it, and whose it is."""
        try:
            return decode_rgb(self._source.read(index)), index
        except UnreadableImage as error:
            reason = error
        rng = generator(self._seed, epoch, index, REPLACEMENT)
        for candidate in rng.integers(0, len(self._source), _REPLACEMENTS):
            try:
                return decode_rgb(self._source.read(int(candidate))), int(candidate)
            except UnreadableImage:
                continue
        raise UserError(
            f"data_url: {self._source.name(index)} is unreadable ({reason}), and so are {_REPLACEMENTS} others in a"
            " row; run scripts/check_dataset.py"
        )


class _Window:
    """Entries first .. first + count - 1 of a sequence of steps over epochs, as the engine wants them."""

    def __init__(self, batches: TrainBatches, epoch: int, first_step: int, count: int) -> None:
        self._batches = batches
        self._first = epoch * batches.steps + first_step
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, position: int) -> tuple[np.ndarray, ...]:
        return self._batches.load(*divmod(self._first + int(position), self._batches.steps))


class TrainData:
    """Training batches of one rank.

    Args:
        config: sections model, data, augment and the seed are read.
        layout: from `check_data`.
        rank, world_size: this process among all.

    Raises:
        UserError: fewer images than one batch on every rank.
    """

    def __init__(self, config: Config, layout: DataLayout, rank: int = 0, world_size: int = 1) -> None:
        assert layout.train is not None, "check_data was not asked for train"
        self.class_names = layout.class_names
        self.num_images = len(layout.train)
        self._source = layout.train
        self._workers = config.data.num_parallel_workers
        pipeline = TrainPipeline(
            config.augment, config.data, config.model.image_hw, config.model.num_classes, config.run.seed
        )
        batch = config.data.batch_size
        self._batches = TrainBatches(layout.train, pipeline, config.run.seed, batch, rank, world_size)
        self.steps_per_epoch = self._batches.steps
        if not self.steps_per_epoch:
            raise UserError(
                f"batch_size: {batch} on {world_size} device(s) is more than the {self.num_images} training images"
            )
        self.unreadable: dict[str, int] = {}

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches `first_step` .. `steps_per_epoch` - 1 of an epoch.

        Yields:
            images, NumPy float32 (B, 3, H, W), normalised and mixed; targets, NumPy float32 (B, num_classes).
        """
        dataset = self._dataset(epoch, first_step, self.steps_per_epoch - first_step)
        for images, targets, unreadable in dataset.create_tuple_iterator(num_epochs=1, output_numpy=True):
            self._report(unreadable)
            yield images, targets

    def dataset(self, epoch: int, first_step: int = 0, epochs: int = 1) -> Any:
        """MindSpore dataset with columns image and target, of the same batches, over `epochs` epochs (sink mode)."""
        count = self.steps_per_epoch * epochs - first_step
        return self._dataset(epoch, first_step, count).project(["image", "target"])

    def _dataset(self, epoch: int, first_step: int, count: int) -> Any:
        import mindspore.dataset as ds

        return ds.GeneratorDataset(
            _Window(self._batches, epoch, first_step, count),
            ["image", "target", "unreadable"],
            num_parallel_workers=min(self._workers, count),
            python_multiprocessing=False,
            shuffle=False,
        )

    def _report(self, unreadable: np.ndarray) -> None:
        for index in unreadable[unreadable >= 0]:
            path = self._source.name(int(index))
            if path not in self.unreadable:
                logger.warning("unreadable training image %s: another one takes its place", path)
            self.unreadable[path] = self.unreadable.get(path, 0) + 1


class _EvalBatches:
    """Batches of one rank: sample numbers rank, rank + world, ..., padded to a constant batch and number of steps."""

    def __init__(self, source: ImageSource, pipeline: EvalPipeline, image_hw: tuple[int, int], batch: int, rank: int,
                 world: int) -> None:  # fmt: skip
        self._source = source
        self._pipeline = pipeline
        self._image_hw = image_hw
        self._batch = batch
        self._indices = np.arange(rank, len(source), world)
        longest_shard = -(-len(source) // world)
        self.steps = -(-longest_shard // batch)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[np.ndarray, ...]:
        """Images, labels int32 (b,), valid float32 (b,), and unreadable sample numbers int64 (b,) or -1."""
        step = int(step)
        images = np.zeros((self._batch, 3, *self._image_hw), dtype=np.float32)
        labels = np.zeros(self._batch, dtype=np.int32)
        valid = np.zeros(self._batch, dtype=np.float32)
        unreadable = np.full(self._batch, -1, dtype=np.int64)
        for place, index in enumerate(self._indices[step * self._batch : (step + 1) * self._batch]):
            try:
                self._pipeline(decode_rgb(self._source.read(int(index))), images[place])
            except UnreadableImage:
                unreadable[place] = index
                continue
            labels[place] = self._source.labels[index]
            valid[place] = 1.0
        return images, labels, valid, unreadable


class EvalData:
    """Evaluation batches of one rank; over all ranks every image of val is valid exactly once.

    `steps` is the same on all ranks; the padding, and unreadable images, have valid 0.
    """

    def __init__(self, config: Config, layout: DataLayout, rank: int = 0, world_size: int = 1) -> None:
        assert layout.val is not None, "check_data was not asked for val"
        self._source = layout.val
        self._workers = config.data.num_parallel_workers
        self.num_images = len(layout.val)
        pipeline = EvalPipeline(config.augment, config.data, config.model.image_hw)
        batch = config.data.eval_batch_size or config.data.batch_size
        self._batches = _EvalBatches(layout.val, pipeline, config.model.image_hw, batch, rank, world_size)
        self.steps = self._batches.steps
        self.unreadable: list[str] = []

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yields NumPy arrays: images float32 (b, 3, H, W), labels int32 (b,), valid float32 (b,)."""
        import mindspore.dataset as ds

        self.unreadable = []
        dataset = ds.GeneratorDataset(
            self._batches,
            ["image", "label", "valid", "unreadable"],
            num_parallel_workers=min(self._workers, self.steps),
            python_multiprocessing=False,
            shuffle=False,
        )
        for images, labels, valid, unreadable in dataset.create_tuple_iterator(num_epochs=1, output_numpy=True):
            self.unreadable += [self._source.name(int(index)) for index in unreadable[unreadable >= 0]]
            yield images, labels, valid
