"""Batch number -> batch. Which samples a batch holds, and all that is done to them, follows from its number alone."""

from __future__ import annotations

from typing import Callable, Optional

import numpy as np
from PIL import Image

from focal.config.schema import Config
from focal.data.buffers import BatchBuffers
from focal.data.decode import UnreadableImage, decode_rgb
from focal.data.pipeline import EvalPipeline, TrainPipeline
from focal.data.randomness import REPLACEMENT, epoch_order, generator
from focal.data.sources import ImageSource
from focal.errors import UserError

_REPLACEMENTS = 20  # stand-ins tried for an unreadable image


def blank_batch(config: Config) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Zeros of the shapes and types of a training batch, to compile the step for: images, targets, drop path."""
    batch, model = config.data.batch_size, config.model
    return (
        np.zeros((batch, model.in_channels, *model.image_hw), np.float32),
        np.zeros((batch, model.num_classes), np.float32),
        np.zeros((2 * sum(model.depths), batch), np.float32),
    )


class TrainBatches:
    """Training batches of one rank.

    Args:
        source: the samples.
        pipeline: what is done to them.
        seed: of order and stand-ins.
        batch: samples per batch and rank.
        rank, world_size: this process among all.
    """

    def __init__(
        self, source: ImageSource, pipeline: TrainPipeline, seed: int, batch: int, rank: int, world_size: int
    ) -> None:
        self._source = source
        self._pipeline = pipeline
        self._seed = seed
        self._batch = batch
        self._rank = rank
        self._world_size = world_size
        self._buffers = BatchBuffers((batch, 3, *pipeline.image_hw))
        self._order = (-1, np.empty(0, dtype=np.int64))
        self.steps = len(source) // (batch * world_size)

    def indices(self, epoch: int, step: int) -> np.ndarray:
        """Samples of one batch, int64 (B,): in each step the ranks take consecutive pieces of the epoch's order."""
        known_epoch, order = self._order  # read once: another thread may be an epoch ahead
        if known_epoch != epoch:
            order = epoch_order(self._seed, epoch, len(self._source))
            self._order = (epoch, order)
        start = self._number(step) * self._batch
        return order[start : start + self._batch]

    def load(self, epoch: int, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Make one batch.

        Returns:
            images float32 (B, 3, H, W); targets float32 (B, num_classes); factors of drop path float32
            (2 * blocks, B); numbers of unreadable samples int64 (B,), -1 where there was nothing wrong.

        Raises:
            UserError: no readable image could be found in place of an unreadable one.
        """
        pipeline = self._pipeline
        images = self._buffers.take()
        labels = np.empty(self._batch, dtype=np.int64)
        unreadable = np.full(self._batch, -1, dtype=np.int64)
        for place, index in enumerate(self.indices(epoch, step).tolist()):
            image, used = self._decode(index, epoch)
            if used != index:
                unreadable[place] = index
            rng = pipeline.sample_rng(epoch, index)
            image = pipeline.augment(pipeline.crop(image, rng), rng)
            pipeline.normalize(image, rng, images[place])
            labels[place] = self._source.labels[used]
        targets = pipeline.mix(images, labels, epoch, self._number(step))
        drop_path = pipeline.drop_path(self._batch, epoch, self._number(step))
        return images, targets, drop_path, unreadable

    def _number(self, step: int) -> int:
        """This rank's batch among all batches of the epoch."""
        return step * self._world_size + self._rank

    def _decode(self, index: int, epoch: int) -> tuple[Image.Image, int]:
        """The image of sample `index`, or else of a stand-in drawn for it, and whose it is."""
        try:
            return decode_rgb(self._source.read(index)), index
        except UnreadableImage as error:
            reason = error
        rng = generator(self._seed, epoch, index, REPLACEMENT)
        for candidate in rng.integers(0, len(self._source), _REPLACEMENTS).tolist():
            try:
                return decode_rgb(self._source.read(candidate)), candidate
            except UnreadableImage:
                continue
        raise UserError(
            f"data_url: cannot read {self._source.name(index)} ({reason}), nor {_REPLACEMENTS} others in its place;"
            " python scripts/check_dataset.py lists what is unreadable"
        )


class TrainWindow:
    """Batches `first` .. `first` + `count` - 1, numbered on through the epochs, as the engine wants them.

    Args:
        report: takes the `unreadable` of `TrainBatches.load`, in the worker. None: two more arrays per batch instead:
            those numbers, and int64 (1,): 1 where the batch could not be made. With a function that raises; and what a
            worker raises comes out of the engine as its own error, with a page of text.
    """

    def __init__(
        self, batches: TrainBatches, first: int, count: int, report: Optional[Callable[[np.ndarray], None]]
    ) -> None:
        self._batches = batches
        self._first = first
        self._count = count
        self._report = report

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, position: int) -> tuple[np.ndarray, ...]:
        epoch, step = divmod(self._first + int(position), self._batches.steps)
        if self._report is not None:
            *batch, unreadable = self._batches.load(epoch, step)
            self._report(unreadable)
            return tuple(batch)
        try:
            return (*self._batches.load(epoch, step), np.zeros(1, dtype=np.int64))
        except UserError:
            nothing = np.zeros(1, dtype=np.float32)
            return nothing, nothing, nothing, self._batches.indices(epoch, step), np.ones(1, dtype=np.int64)


class EvalBatches:
    """Evaluation batches of one rank: samples rank, rank + world_size, ...

    All batches have the same size and all ranks the same number of them; what is missing is zeros with valid 0.
    """

    def __init__(self, source: ImageSource, pipeline: EvalPipeline, batch: int, rank: int, world_size: int) -> None:
        self._source = source
        self._pipeline = pipeline
        self._batch = batch
        self._indices = np.arange(rank, len(source), world_size)
        self._buffers = BatchBuffers((batch, 3, *pipeline.image_hw))
        longest_shard = -(-len(source) // world_size)
        self.steps = -(-longest_shard // batch)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[np.ndarray, ...]:
        """Images float32 (b, 3, H, W), labels int32 (b,), valid float32 (b,), unreadable sample numbers int64 (b,)."""
        images = self._buffers.take()
        labels = np.zeros(self._batch, dtype=np.int32)
        valid = np.zeros(self._batch, dtype=np.float32)
        unreadable = np.full(self._batch, -1, dtype=np.int64)
        start = int(step) * self._batch
        indices = self._indices[start : start + self._batch].tolist()
        for place, index in enumerate(indices):
            try:
                self._pipeline(decode_rgb(self._source.read(index)), images[place])
            except UnreadableImage:
                unreadable[place] = index
                continue
            labels[place] = self._source.labels[index]
            valid[place] = 1.0
        images[valid == 0] = 0.0
        return images, labels, valid, unreadable
