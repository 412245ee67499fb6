"""Where the bytes and the label of sample i come from: a folder of image files, or (mindrecord.py) MindRecord files."""

from __future__ import annotations

import os
from typing import Iterable, Protocol

import numpy as np

from focal.data.decode import read_file


class ImageSource(Protocol):
    """Samples 0 .. len - 1 of one split in a fixed order. Workers read it at the same time; it is copied to them."""

    labels: np.ndarray  # int32 (len,)

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """Bytes of the image file; raises `UnreadableImage`."""
        ...

    def name(self, index: int) -> str:
        """What to call the sample in a message: its path, or file and row."""
        ...


class PackedStrings:
    """An immutable list of strings in two arrays.

    A million Python strings would be copied into every forked worker as soon as their reference counts are touched;
    arrays stay shared.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        encoded = [os.fsencode(string) for string in strings]
        self._ends = np.cumsum([len(string) for string in encoded], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._bytes[start : self._ends[index]].tobytes())


class FolderSource:
    """Image files under one folder.

    Args:
        root: the folder of the split.
        paths: file paths relative to `root`.
        labels: class index of each.
    """

    def __init__(self, root: str, paths: Iterable[str], labels: np.ndarray) -> None:
        self._root = root
        self._paths = PackedStrings(paths)
        self.labels = np.asarray(labels, dtype=np.int32)
        assert len(self._paths) == len(self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        return read_file(self.name(index))

    def name(self, index: int) -> str:
        return os.path.join(self._root, self._paths[index])
