"""Memory for batches, used again once nobody looks at the batch any more.

A batch of 64 images takes 38 MB, which the C library hands back to the system and asks for again every time; touching
its pages anew costs up to a sixth of the time of the whole recipe.
"""

from __future__ import annotations

import sys
import threading

import numpy as np


class BatchBuffers:
    """Arrays of one shape; one per thread and batch in flight is ever made.

    Every view of an array, NumPy's or MindSpore's, holds a reference to it, so an array referred to by this pool alone
    is free.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._arrays: list[np.ndarray] = []
        self._lock = threading.Lock()

    def take(self) -> np.ndarray:
        """A float32 array whose contents are undefined."""
        with self._lock:
            for place in range(len(self._arrays)):
                if sys.getrefcount(self._arrays[place]) == _UNUSED:
                    return self._arrays[place][:]
            self._arrays.append(np.empty(self._shape, dtype=np.float32))
            return self._arrays[-1][:]

    def __len__(self) -> int:
        return len(self._arrays)

    def __getstate__(self) -> tuple[int, ...]:
        return self._shape  # a worker process starts with a pool of its own

    def __setstate__(self, shape: tuple[int, ...]) -> None:
        self.__init__(shape)


def _unused_count() -> int:
    """What `sys.getrefcount` says of an array in a list that nothing else refers to."""
    arrays = [np.empty(1)]
    return sys.getrefcount(arrays[0])


_UNUSED = _unused_count()
