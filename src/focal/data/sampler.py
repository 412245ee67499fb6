"""Which samples make up a batch, and the random numbers used to augment them.

Both are pure functions of (seed, epoch, index), whatever the number of workers and whatever was drawn before. So every
batch is reproducible, a run can resume in the middle of an epoch, and sharding is index arithmetic.

Philox is a counter-based generator: its output is a keyed function of a 256-bit counter. The key holds the seed and,
with repeated augmentation, the number of the copy; the upper words of the counter hold stream, epoch and index; and
drawing numbers advances the lowest word only. Generators with different arguments therefore never overlap.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

# Streams: what the numbers are used for. The values are part of what a seed means, so never renumber them.
ORDER = 0  # the permutation of an epoch; index: 0
SAMPLE = 1  # crop, flip, RandAugment and erasing of one sample; index: the sample
BATCH = 2  # Mixup and CutMix of one batch; index: the batch's number over all ranks
REPLACEMENT = 3  # which samples may replace an unreadable one; index: the unreadable sample
DROP_PATH = 4  # drop path of one batch; index: the batch's number over all ranks


class _Key(np.random.bit_generator.ISeedSequence):
    """Philox takes its key from here. Given as `key`, it would first ask the system for 128 unused random bits."""

    def __init__(self, *words: int) -> None:
        self._words = words

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        assert n_words == len(self._words)
        return np.array(self._words, dtype=dtype)


def generator(seed: int, epoch: int, index: int, stream: int, copy: int = 0) -> np.random.Generator:
    """A random generator that depends on nothing but its five arguments (each in 0 .. 2^63 - 1)."""
    counter = np.array([0, index, epoch, stream], dtype=np.uint64)
    key: Any = _Key(seed, copy)
    return np.random.Generator(np.random.Philox(key, counter=counter))


@functools.lru_cache(maxsize=2)  # workers that read ahead are in two epochs at once
def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order in which an epoch visits samples 0 .. count - 1: int64 (count,)."""
    return generator(seed, epoch, 0, ORDER).permutation(count)


@dataclass(frozen=True)
class TrainSampler:
    """In each step the ranks take consecutive slices of the epoch's permutation; an incomplete last step is dropped.

    With repeated augmentation (Hoffer et al. 2020), every sample of the permutation stands there `repeats` times in a
    row, and the ranks take turns, so that copies of a sample go to different ranks (one rank has them side by side).
    This is the order of timm's RepeatAugSampler. The number of steps stays, so an epoch visits 1 / `repeats` of the
    samples, other ones in each epoch.
    """

    seed: int
    num_samples: int
    batch_size: int  # per rank
    rank: int
    world_size: int
    repeats: int = 1

    @property
    def batches_per_epoch(self) -> int:
        return self.num_samples // (self.batch_size * self.world_size)

    def batch_number(self, step: int) -> int:
        """The number of this rank's batch among the batches of all ranks in the epoch."""
        return step * self.world_size + self.rank

    def indices(self, epoch: int, step: int) -> np.ndarray:
        """The samples of one batch: int64 (B,)."""
        return epoch_order(self.seed, epoch, self.num_samples)[self._places(step) // self.repeats]

    def copies(self, step: int) -> np.ndarray:
        """Which copy of its sample each entry of a batch is, counted from 0: int64 (B,)."""
        return self._places(step) % self.repeats

    def _places(self, step: int) -> np.ndarray:
        """Places of a batch's entries in the list of all ranks' entries in the epoch: int64 (B,)."""
        in_batch = np.arange(self.batch_size)
        if self.repeats == 1:
            return self.batch_number(step) * self.batch_size + in_batch
        return (step * self.batch_size + in_batch) * self.world_size + self.rank


@dataclass(frozen=True)
class EvalSampler:
    """Rank r takes samples r, r + world_size, ... in order; all ranks make the same number of batches."""

    num_samples: int
    batch_size: int  # per rank
    rank: int
    world_size: int

    @property
    def steps(self) -> int:
        longest_shard = -(-self.num_samples // self.world_size)
        return -(-longest_shard // self.batch_size)

    def indices(self, step: int) -> np.ndarray:
        """The samples of one batch: int64, (B,) or shorter, even empty, where this rank has no more of them."""
        shard = np.arange(self.rank, self.num_samples, self.world_size)
        return shard[step * self.batch_size : (step + 1) * self.batch_size]
