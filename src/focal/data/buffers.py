"""Memory for batches, reused as soon as nothing refers to the batch any more.

A batch of 64 images takes 38 MB. The C library returns that to the system and requests it again for every batch, and
mapping its pages again costs up to a sixth of the time of the whole recipe.
"""

from __future__ import annotations

import sys
import threading

import numpy as np


class BatchBuffers:
    """A pool of float32 arrays of one shape, which grows to the number of batches in use at the same time.

    Every view of an array, whether NumPy's or MindSpore's, holds a reference to it. An array that only this pool refers
    to is therefore free.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._arrays: list[np.ndarray] = []
        self._lock = threading.Lock()

    def take(self) -> np.ndarray:
        """An array with undefined contents."""
        with self._lock:
            for place in range(len(self._arrays)):
                if sys.getrefcount(self._arrays[place]) == _UNUSED:
                    return self._arrays[place][:]
            self._arrays.append(np.empty(self._shape, dtype=np.float32))
            return self._arrays[-1][:]

    def __len__(self) -> int:
        return len(self._arrays)

    def __reduce__(self) -> tuple[type[BatchBuffers], tuple[tuple[int, ...]]]:
        return BatchBuffers, (self._shape,)  # another process starts with an empty pool


def _unused_count() -> int:
    """What `sys.getrefcount` returns for an array in a list that nothing else refers to."""
    arrays = [np.empty(1)]
    return sys.getrefcount(arrays[0])


_UNUSED = _unused_count()
