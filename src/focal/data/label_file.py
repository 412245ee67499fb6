"""A flat folder of images with a list of labels, as ImageNet's validation set is usually passed on:

    val/ILSVRC2012_val_00000001.JPEG ...
    val_label.txt            ILSVRC2012_val_00000001.JPEG 65
                             ...

A line holds a file name and a label, with white space between them; the name may start with `val/`. Or each line holds
a label alone, and the first belongs to the first file in the order of the names. Labels count from 0; those of ImageNet
follow the sorted WordNet IDs, the names of its class folders.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Optional

import numpy as np

from focal.data.folder import ImageFiles, and_more, is_image_name
from focal.errors import UserError, shown

LABEL_FILE = "val_label.txt"
_DEVKIT_LABELS = "ILSVRC2012_validation_ground_truth.txt"
_MOST_DIGITS = 9  # of a label, leading zeros included
_MOST_CLASSES = 1_000_000  # where the number of classes is not known


def find_label_file(root: str) -> Optional[str]:
    """val_label.txt, in `root`/val or else in `root`; None if there is none.

    Raises:
        UserError: there is only the list of ImageNet's development kit.
    """
    places = (os.path.join(root, "val"), root)
    for folder in places:
        path = os.path.join(folder, LABEL_FILE)
        if os.path.isfile(path):
            return path
    for folder in places:
        path = os.path.join(folder, _DEVKIT_LABELS)
        if os.path.isfile(path):
            raise UserError(
                f"data_url: {path} numbers the classes 1 to 1000 in an order of its own (ILSVRC2012_ID in the kit's "
                f"meta.mat), not by sorted WordNet ID as networks do; give {LABEL_FILE} with lines like "
                "`ILSVRC2012_val_00000001.JPEG 65`, or one folder per class"
            )
    return None


class LabelledFolder(ImageFiles):
    """The images of a flat folder, sorted by label and name: the order that they would have in class folders.

    Args:
        root: the folder of the split; its sub-folders are ignored.
        label_file: from `find_label_file`.
        num_classes: labels must be below it; 0: the number is not known.

    Raises:
        UserError: a line is not understood, is out of range, names a missing image or one that a line before it names;
            or an image has no label.
        OSError: the folder or the file cannot be read.
    """

    def __init__(self, root: str, label_file: str, num_classes: int) -> None:
        with os.scandir(root) as entries:
            names = sorted(entry.name for entry in entries if is_image_name(entry.name))
        lines = _read_lines(label_file)
        if all(len(fields) == 1 for fields in lines.values()):
            labels = _labels_in_order(names, lines, label_file, root)
        else:
            labels = _labels_by_name(names, lines, label_file, root)
        most = num_classes or _MOST_CLASSES
        for name, (number, label) in labels.items():
            if label >= most:
                raise UserError(
                    f"data_url: {label_file}, line {number}: label {label} of {name!r} is not in 0 .. {most - 1}; "
                    "correct it, or --num_classes"
                )
        ordered = sorted((label, name) for name, (_, label) in labels.items())
        super().__init__(root, (name for _, name in ordered), np.array([label for label, _ in ordered], np.int32))


def _read_lines(label_file: str) -> dict[int, list[bytes]]:
    """By line number, from 1: [label], or [name, label]. Empty lines are left out."""
    with open(label_file, "rb") as file:
        lines = file.read().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    fields = {number: line.rsplit(None, 1) for number, line in enumerate(lines, 1) if line.strip()}
    if not fields:
        raise UserError(f"data_url: {label_file} is empty; it must hold a line `name label` for each image")
    return fields


def _label(field: bytes, number: int, label_file: str) -> int:
    if not field.isdigit() or len(field) > _MOST_DIGITS:  # Python refuses to read thousands of digits
        raise UserError(
            f"data_url: {label_file}, line {number}: {shown(os.fsdecode(field))} is not a label, a number from 0 on; "
            "lines must be `name label`, or all a label alone"
        )
    return int(field)


def _labels_in_order(
    names: list[str], lines: Mapping[int, list[bytes]], label_file: str, root: str
) -> dict[str, tuple[int, int]]:
    """Name -> line and label, where each line is a label."""
    if len(lines) != len(names):
        raise UserError(
            f"data_url: {label_file} holds {len(lines)} labels without names, but {root} holds {len(names)} images; "
            "give lines `name label`, or the missing files"
        )
    return {name: (line, _label(field, line, label_file)) for name, (line, (field,)) in zip(names, lines.items())}


def _labels_by_name(
    names: list[str], lines: Mapping[int, list[bytes]], label_file: str, root: str
) -> dict[str, tuple[int, int]]:
    """Name -> line and label, where each line is a name and a label."""
    prefix, known = f"{os.path.basename(root)}/", set(names)
    labels: dict[str, tuple[int, int]] = {}
    for line, fields in lines.items():
        label = _label(fields[-1], line, label_file)
        name = os.fsdecode(fields[0].lstrip()).removeprefix(prefix)
        where = f"data_url: {label_file}, line {line}: "
        if len(fields) == 1:
            raise UserError(f"{where}a label without a name; lines must be `name label`, or all a label alone")
        if name not in known:
            raise UserError(f"{where}{root} holds no image {name!r}; add it or remove the line")
        if name in labels:
            raise UserError(f"{where}{name!r} has a label already, in line {labels[name][0]}; remove one of them")
        labels[name] = (line, label)
    unlabelled = [name for name in names if name not in labels]
    if unlabelled:
        raise UserError(
            f"data_url: {label_file} has no label for {unlabelled[0]!r} in {root}{and_more(unlabelled)}; add a line or "
            "remove the image"
        )
    return labels
