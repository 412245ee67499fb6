"""A folder of image files, one sub-folder per class, as numbered samples.

Only directory listings are read, no image is opened, so that 1.28 million files take seconds.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np

from focal.data.decode import read_file
from focal.errors import UserError

IMAGE_EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif"))


class ImageSource(Protocol):
    """Samples 0 .. len - 1 of one split in a fixed order: an `ImageFolder`, or MindRecord files (mindrecord.py).

    Several workers read from it at the same time; worker processes get a copy.
    """

    labels: np.ndarray  # int32 (len,)

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """The bytes of the image file; raises `UnreadableImage`."""
        ...

    def name(self, index: int) -> str:
        """What messages call the sample: its path, or MindRecord file and name."""
        ...


def pack_names(names: Iterable[str]) -> np.ndarray:
    """File names as an array of bytes.

    Forked workers share the array; a list of strings would be copied as soon as it is read.
    """
    return np.array([os.fsencode(name) for name in names], dtype=bytes)


class ImageFolder:
    """The image files of one split, sorted by class and path. Sub-folders of a class belong to it.

    Args:
        root: the folder of the split, which holds the class folders.
        class_names: by label; classes without a folder have no samples.

    Raises:
        UserError: a class folder holds no image.
        OSError: a folder cannot be listed.
    """

    def __init__(self, root: str, class_names: Sequence[str]) -> None:
        self._root = root
        present = set(class_folders(root))
        files = [
            sorted(_image_files(os.path.join(root, name), name)) if name in present else [] for name in class_names
        ]
        empty = [name for name, paths in zip(class_names, files) if name in present and not paths]
        if empty:
            raise UserError(
                f"data_url: class {empty[0]!r} in {root} has no image{and_more(empty)}; add images or remove the folder"
            )
        self._paths = pack_names(path for paths in files for path in paths)
        self.labels = np.repeat(np.arange(len(files), dtype=np.int32), [len(paths) for paths in files])

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        return read_file(self.name(index))

    def name(self, index: int) -> str:
        return os.path.join(self._root, self.relative_name(index))

    def relative_name(self, index: int) -> str:
        """`class/file`."""
        return os.fsdecode(self._paths[index])


def class_folders(root: str) -> tuple[str, ...]:
    """Sorted names of the folders in `root`, without hidden ones."""
    with os.scandir(root) as entries:
        return tuple(sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")))


def _image_files(folder: str, prefix: str) -> Iterator[str]:
    """Paths of the image files in `folder` and below, each starting with `prefix`."""
    with os.scandir(folder) as entries:
        for entry in entries:
            path = f"{prefix}/{entry.name}"
            if os.path.splitext(entry.name)[1].lower() in IMAGE_EXTENSIONS:
                yield path
            elif entry.is_dir():
                yield from _image_files(entry.path, path)


def and_more(names: Sequence[str]) -> str:
    """How many names follow the first, for messages that name only that one."""
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
