"""What a data folder holds, from directory listings alone: no image is opened, so 1.28 million are quick."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Iterator, Optional, Sequence

import numpy as np

from focal.config.schema import Config
from focal.data.mindrecord import CLASSES_FILE, MindRecordSource, find_shards, read_class_names
from focal.data.sources import FolderSource, ImageSource
from focal.errors import UserError

logger = logging.getLogger("focal")

IMAGE_EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif"))


@dataclass(frozen=True)
class DataLayout:
    """The splits found in a data folder; a split that was not asked for is None."""

    folder: str
    class_names: tuple[str, ...]
    train: Optional[ImageSource]
    val: Optional[ImageSource]


def check_data(config: Config, data_folder: str, splits: Sequence[str] = ("train", "val")) -> DataLayout:
    """Find the splits of a data folder and check them against the configuration. Needs neither device nor image.

    Args:
        config: `num_classes` must be the number of classes found.
        data_folder: see `find_layout`.
        splits: which ones the caller needs.

    Raises:
        UserError: missing or unreadable folder, empty class, class in val that train lacks, other number of classes;
            a network for other images than RGB.
    """
    if config.model.in_channels != 3:
        raise UserError(f"in_channels: {config.model.in_channels}, but images are read as RGB; set --in_channels 3")
    layout = find_layout(data_folder, splits)
    found, wanted = len(layout.class_names), config.model.num_classes
    if wanted != found:
        raise UserError(
            f"num_classes: {wanted}, but {layout.folder} has {found} classes; set --num_classes {found}"
            " or correct --data_url"
        )
    return layout


def find_layout(data_folder: str, splits: Sequence[str] = ("train", "val")) -> DataLayout:
    """The splits of a data folder.

    Args:
        data_folder: holds train/ and val/, each with a folder per class, or train.mindrecord* and val.mindrecord*; or
            its folder `imagenet` does.
        splits: which ones the caller needs.

    Raises:
        UserError: see `check_data`.
    """
    if not os.path.isdir(data_folder):
        raise UserError(f"data_url: {data_folder} is not a folder; --data_url names the one with train/ and val/")
    try:
        for root in (data_folder, os.path.join(data_folder, "imagenet")):
            if all(os.path.isdir(os.path.join(root, split)) for split in splits):
                return _folder_layout(root, splits)
            if all(find_shards(root, split) for split in splits):
                return _mindrecord_layout(root, splits)
    except OSError as error:
        raise UserError(f"data_url: cannot read {error.filename} ({error.strerror}); check its permissions") from None
    wanted = " and ".join(f"{split}/" for split in splits)
    nested = " and ".join(f"imagenet/{split}" for split in splits)
    records = " and ".join(f"{split}.mindrecord*" for split in splits)
    raise UserError(
        f"data_url: {data_folder} holds neither {wanted}, nor {nested}, nor {records};"
        " --data_url names the folder that does"
    )


def find_class_names(data_folder: str) -> tuple[str, ...]:
    """Names of the classes in a data folder, by label, from train (else val) alone; empty if there are none."""
    for root in (data_folder, os.path.join(data_folder, "imagenet")):
        for split in ("train", "val"):
            if os.path.isdir(os.path.join(root, split)):
                return _folders_in(os.path.join(root, split))
            if find_shards(root, split):
                return read_class_names(root) or ()
    return ()


def _mindrecord_layout(root: str, splits: Sequence[str]) -> DataLayout:
    """Splits in MindRecord files, which carry their labels."""
    sources = {split: MindRecordSource(find_shards(root, split)) for split in splits}
    for split, source in sources.items():
        if not len(source):
            raise UserError(f"data_url: {os.path.join(root, split)}.mindrecord* hold no image; write them again")
    largest = max(int(source.labels.max()) for source in sources.values())
    class_names = read_class_names(root) or tuple(str(label) for label in range(largest + 1))
    if largest >= len(class_names):
        raise UserError(f"data_url: {root} has label {largest}, but {len(class_names)} names in its {CLASSES_FILE}")
    return DataLayout(root, class_names, sources.get("train"), sources.get("val"))


def _folder_layout(root: str, splits: Sequence[str]) -> DataLayout:
    """Splits with one folder per class; labels follow train's sorted folder names (val's without a train)."""
    names_from = os.path.join(root, "train")
    if "train" not in splits and not (os.path.isdir(names_from) and _folders_in(names_from)):
        names_from = os.path.join(root, splits[0])
    class_names = _class_folders(names_from)
    sources = {}
    for split in splits:
        folder = os.path.join(root, split)
        found = class_names if folder == names_from else _class_folders(folder)
        unknown = sorted(set(found) - set(class_names))
        if unknown:
            raise UserError(
                f"data_url: class {unknown[0]!r} is in {folder} but not in {names_from}"
                f"{_and_more(unknown)}; remove it there or add it here"
            )
        if len(found) < len(class_names):
            logger.warning("%s has images of %d of the %d classes", folder, len(found), len(class_names))
        sources[split] = _list_split(folder, found, class_names)
    return DataLayout(root, class_names, sources.get("train"), sources.get("val"))


def _class_folders(folder: str) -> tuple[str, ...]:
    names = _folders_in(folder)
    if not names:
        raise UserError(f"data_url: {folder} holds no class folders; each class needs a folder of its own in it")
    return names


def _folders_in(folder: str) -> tuple[str, ...]:
    with os.scandir(folder) as entries:
        return tuple(sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")))


def _list_split(folder: str, found: Sequence[str], class_names: Sequence[str]) -> FolderSource:
    label_of = {name: label for label, name in enumerate(class_names)}
    paths: list[str] = []
    counts = []
    empty = []
    for name in found:
        files = sorted(_image_files(os.path.join(folder, name), name))
        if not files:
            empty.append(name)
        paths.extend(files)
        counts.append(len(files))
    if empty:
        raise UserError(
            f"data_url: class {empty[0]!r} in {folder} has no image{_and_more(empty)}; add images or remove the folder"
        )
    return FolderSource(folder, paths, np.repeat([label_of[name] for name in found], counts))


def _image_files(folder: str, prefix: str) -> Iterator[str]:
    """Paths of the image files in `folder` and below, each starting with `prefix`."""
    with os.scandir(folder) as entries:
        for entry in entries:
            path = f"{prefix}/{entry.name}"
            if os.path.splitext(entry.name)[1].lower() in IMAGE_EXTENSIONS:
                yield path
            elif entry.is_dir():
                yield from _image_files(entry.path, path)


def _and_more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
