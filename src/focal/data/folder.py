"""Image files in a folder, with a sub-folder per class or a list of labels (label_file.py), as numbered samples.

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
    """Samples 0 .. len - 1 of one split in a fixed order: `ImageFiles`, or MindRecord files (mindrecord.py).

    Several workers read from it at the same time; worker processes get a copy.
    """

    labels: np.ndarray  # int32 (len,)

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """The bytes of the image file; raises `UnreadableImage`, and UserError if the machine is short of resources."""
        ...

    def name(self, index: int) -> str:
        """What messages call the sample: its path, or MindRecord file and name."""
        ...

    def relative_name(self, index: int) -> str:
        """The same wherever and however the split is stored: the path below its folder, usually `class/file`."""
        ...


def pack_names(names: Iterable[str]) -> np.ndarray:
    """File names as an array of bytes.

    Forked workers share the array; a list of strings would be copied as soon as it is read.
    """
    return np.array([os.fsencode(name) for name in names], dtype=bytes)


class ImageFiles:
    """Image files below a folder.

    Args:
        root: the folder.
        paths: of the files, relative to `root`.
        labels: of the files, int32.
    """

    def __init__(self, root: str, paths: Iterable[str], labels: np.ndarray) -> None:
        self._root = root
        self._paths = pack_names(paths)
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        return read_file(self.name(index))

    def name(self, index: int) -> str:
        return os.path.join(self._root, self.relative_name(index))

    def relative_name(self, index: int) -> str:
        """The path below the folder of the split, `class/file`."""
        return os.fsdecode(self._paths[index])


class ImageFolder(ImageFiles):
    """The image files of one split, sorted by class and path. Sub-folders of a class belong to it.

    Args:
        root: the folder of the split, which holds the class folders.
        class_names: by label; classes without a folder have no samples.

    Raises:
        UserError: a class folder holds no image.
        OSError: a folder cannot be listed.
    """

    def __init__(self, root: str, class_names: Sequence[str]) -> None:
        present = set(class_folders(root))
        files = [sorted(image_files(os.path.join(root, name), name)) if name in present else [] for name in class_names]
        empty = [name for name, paths in zip(class_names, files) if name in present and not paths]
        if empty:
            raise UserError(
                f"data_url: class {empty[0]!r} in {root} has no image{and_more(empty)}; add images or remove the folder"
            )
        labels = np.repeat(np.arange(len(files), dtype=np.int32), [len(paths) for paths in files])
        super().__init__(root, (path for paths in files for path in paths), labels)


def class_folders(root: str) -> tuple[str, ...]:
    """Sorted names of the folders in `root`, without hidden ones."""
    with os.scandir(root) as entries:
        return tuple(sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")))


def is_image_name(name: str) -> bool:
    """Whether a file of this name counts as an image; hidden ones do not, such as the `._x.png` that macOS leaves."""
    return os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS and not name.startswith(".")


def image_files(folder: str, prefix: str) -> Iterator[str]:
    """Paths of the image files in `folder` and below, each starting with `prefix`; without hidden ones."""
    with os.scandir(folder) as entries:
        for entry in entries:
            path = f"{prefix}/{entry.name}"
            if is_image_name(entry.name):
                yield path
            elif entry.is_dir() and not entry.name.startswith("."):
                yield from image_files(entry.path, path)


def and_more(names: Sequence[str]) -> str:
    """How many names follow the first, for messages that name only that one."""
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
