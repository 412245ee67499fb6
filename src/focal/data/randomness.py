"""Random numbers as a pure function of (seed, epoch, index): which worker draws them, or when, does not matter.

Philox is a counter-based generator: its output is a keyed function of a 256-bit counter. The key holds the seed, the
upper words of the counter hold stream, epoch and index, and drawing advances the lowest word only. So two generators
made from different numbers never overlap, and none depends on what was drawn before.
"""

from __future__ import annotations

import numpy as np

# Streams: what the numbers are for. Values are part of what a seed means; never renumber them.
ORDER = 0  # the permutation of an epoch; index 0
SAMPLE = 1  # crop, flip, RandAugment, erasing of one sample; index: the sample's
BATCH = 2  # Mixup and CutMix of one batch; index: the batch's number over all ranks
REPLACEMENT = 3  # which samples stand in for an unreadable one; index: the unreadable sample's
DROP_PATH = 4  # drop path of one batch; index: the batch's number over all ranks


def generator(seed: int, epoch: int, index: int, stream: int) -> np.random.Generator:
    """A generator whose numbers depend on the four arguments only (all of them in 0 .. 2^63 - 1)."""
    counter = np.array([0, index, epoch, stream], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=np.array([seed, 0], dtype=np.uint64)))


def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order in which epoch `epoch` visits samples 0 .. count - 1: int64 (count,)."""
    return generator(seed, epoch, 0, ORDER).permutation(count)
