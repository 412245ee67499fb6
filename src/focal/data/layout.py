"""What a data folder holds: its splits, as folders of images or as MindRecord files, and whether the config fits."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from focal.config.schema import Config
from focal.data.folder import ImageFiles, ImageFolder, ImageSource, and_more, class_folders
from focal.data.label_file import LABEL_FILE, LabelledFolder, find_label_file
from focal.data.mindrecord import CLASSES_FILE, MindRecordSource, find_shards, read_class_names
from focal.errors import UserError

logger = logging.getLogger("focal")

_OTHER_NAMES = {
    "train": ("train", "training", "train_set"),
    "val": ("val", "valid", "validation", "val_set", "eval", "dev", "test", "testing"),
}  # lower case; in order of likelihood


@dataclass(frozen=True)
class DataLayout:
    """The splits found in a data folder; a split that was not asked for is None.

    Attributes:
        class_names: by label.
        named: False if the names are only the labels' numbers, because MindRecord files or a list of labels came
            without classes.json.
    """

    folder: str
    class_names: tuple[str, ...]
    train: Optional[ImageSource]
    val: Optional[ImageSource]
    named: bool = True

    @property
    def known_class_names(self) -> Optional[tuple[str, ...]]:
        """The class names by label, None if the data does not name its classes."""
        return self.class_names if self.named else None


def check_data(config: Config, data_folder: str, splits: Sequence[str] = ("train", "val")) -> DataLayout:
    """Find the splits of a data folder and check them against the configuration. Opens neither device nor image.

    Args:
        config: its `num_classes` must be the number of classes found, or -1, and its `in_channels` 3.
        data_folder: see `find_layout`.
        splits: the ones the caller needs.

    Raises:
        UserError: a folder is missing or cannot be listed; a class has no image, or is in val but not in train; the
            number of classes differs; a list of labels does not fit its images; the network does not take RGB images.
    """
    if config.model.in_channels != 3:
        raise UserError(f"in_channels: {config.model.in_channels}, but images are read as RGB; set --in_channels 3")
    layout = find_layout(data_folder, splits, config.model.num_classes)
    found, wanted = len(layout.class_names), config.model.num_classes
    if wanted not in (found, -1):
        raise UserError(
            f"num_classes: {wanted}, but {layout.folder} has {found} classes; set --num_classes {found}"
            " or correct --data_url"
        )
    return layout


def with_classes_of(layout: DataLayout, config: Config) -> Config:
    """`config` with the number of classes of the data where its `num_classes` is -1."""
    if config.model.num_classes != -1:
        return config
    logger.info("num_classes: %d, as %s has", len(layout.class_names), layout.folder)
    model = dataclasses.replace(config.model, num_classes=len(layout.class_names))
    return dataclasses.replace(config, model=model)


def find_layout(data_folder: str, splits: Sequence[str] = ("train", "val"), num_classes: int = -1) -> DataLayout:
    """Find the splits of a data folder.

    Args:
        data_folder: the folder that holds train/ and val/, each with a folder per class, or train.mindrecord* and
            val.mindrecord*; they may also be in its sub-folder `imagenet`. Instead of class folders, val/ may hold
            images with a list of their labels (label_file.py).
        splits: the ones the caller needs.
        num_classes: how many classes a list of labels means where nothing names them; below 1: the largest label + 1.

    Raises:
        UserError: as `check_data`.
    """
    if not os.path.isdir(data_folder):
        raise UserError(f"data_url: {data_folder} is not a folder; --data_url names the one with train/ and val/")
    try:
        for root in _roots(data_folder):
            if all(os.path.isdir(os.path.join(root, split)) for split in splits):
                return _folder_layout(root, splits, num_classes)
            if all(find_shards(root, split) for split in splits):
                return _mindrecord_layout(root, splits)
    except OSError as error:
        raise UserError(f"data_url: cannot read {error.filename} ({error.strerror}); check its permissions") from None
    wanted = " and ".join(f"{split}/" for split in splits)
    nested = " and ".join(f"imagenet/{split}" for split in splits)
    records = " and ".join(f"{split}.mindrecord*" for split in splits)
    raise UserError(
        _misnamed_split(data_folder, splits)
        or f"data_url: {data_folder} holds neither {wanted}, nor {nested}, nor {records};"
        " --data_url names the folder that does"
    )


def _misnamed_split(data_folder: str, splits: Sequence[str]) -> str:
    """An error that names the folder which the user may have meant as a split; empty if there is none."""
    for root in _roots(data_folder):
        if not os.path.isdir(root):
            continue
        names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
        for split in splits:
            found = [name for name in names if name.lower() in _OTHER_NAMES[split]]
            if split not in names and found:
                return (
                    f"data_url: {root} has {found[0]}/ but no {split}/; rename it, or add a link:"
                    f" ln -s {found[0]} {os.path.join(root, split)}"
                )
    return ""


def find_class_names(data_folder: str) -> tuple[str, ...]:
    """Class names of a data folder, by label, from train (or val if there is no train); empty if there are none."""
    for root in _roots(data_folder):
        for split in ("train", "val"):
            if os.path.isdir(os.path.join(root, split)):
                return class_folders(os.path.join(root, split)) or read_class_names(root) or ()
            if find_shards(root, split):
                return read_class_names(root) or ()
    return ()


def _roots(data_folder: str) -> tuple[str, str]:
    return data_folder, os.path.join(data_folder, "imagenet")


def _mindrecord_layout(root: str, splits: Sequence[str]) -> DataLayout:
    """Splits in MindRecord files, which carry their labels."""
    sources = {split: MindRecordSource(find_shards(root, split)) for split in splits}
    for split, source in sources.items():
        if not len(source):
            raise UserError(f"data_url: {os.path.join(root, split)}.mindrecord* hold no image; write them again")
    largest = max(int(source.labels.max()) for source in sources.values())
    names = read_class_names(root)
    class_names = names or tuple(str(label) for label in range(largest + 1))
    if largest >= len(class_names):
        raise UserError(f"data_url: {root} has label {largest}, but {len(class_names)} names in its {CLASSES_FILE}")
    return DataLayout(root, class_names, sources.get("train"), sources.get("val"), named=bool(names))


def _folder_layout(root: str, splits: Sequence[str], num_classes: int) -> DataLayout:
    """Splits in folders of images; labels follow train's sorted folder names (val's if there is no train)."""
    names_from = os.path.join(root, "train")
    if "train" not in splits and not (os.path.isdir(names_from) and class_folders(names_from)):
        names_from = os.path.join(root, splits[0])
    class_names = class_folders(names_from)
    if not class_names and "train" not in splits:
        class_names = read_class_names(root) or ()
    sources = {split: _folder_source(root, split, class_names, names_from, num_classes) for split in splits}
    named = bool(class_names)
    if not named:  # a list of labels, whose classes nothing names
        class_names = tuple(map(str, range(max(num_classes, 1 + int(sources["val"].labels.max())))))
    return DataLayout(root, class_names, sources.get("train"), sources.get("val"), named)


def _folder_source(
    root: str, split: str, class_names: tuple[str, ...], names_from: str, num_classes: int
) -> ImageFiles:
    """The images of one split, in class folders or, of val, with a list of labels."""
    folder = os.path.join(root, split)
    found = class_folders(folder)
    label_file = find_label_file(root) if split == "val" and not found else None
    if label_file is not None:
        return LabelledFolder(folder, label_file, len(class_names) or max(num_classes, 0))
    if not found:
        labels = f", or {LABEL_FILE} the label of each image" if split == "val" else ""
        raise UserError(f"data_url: {folder} holds no class folders; each class needs its own folder in it{labels}")
    unknown = sorted(set(found) - set(class_names))
    if unknown:
        raise UserError(
            f"data_url: class {unknown[0]!r} is in {folder} but not in {names_from}"
            f"{and_more(unknown)}; remove it there or add it here"
        )
    if len(found) < len(class_names):
        logger.warning("%s has images of %d of the %d classes", folder, len(found), len(class_names))
    return ImageFolder(folder, class_names)
