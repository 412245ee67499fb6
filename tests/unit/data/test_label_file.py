"""A flat folder with a list of labels gives the samples that class folders give; what does not fit is named by line."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Callable, Optional

import numpy as np
import pytest

from focal.config.schema import Config
from focal.data import EvalData, TrainData, check_data, find_class_names
from focal.data.layout import find_layout
from focal.errors import UserError
from focal.predictions import PredictionCollector

MakeConfig = Callable[..., Config]
NAMES = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 14)]


@pytest.fixture
def flat(image_folder: Path, tmp_path: Path) -> tuple[Path, list[int]]:
    """The images of val in one folder, under ImageNet's names in mixed order; and the label of each."""
    (tmp_path / "flat" / "val").mkdir(parents=True)
    paths = sorted((image_folder / "val").glob("*/*.jpg"))
    labels = []
    for name, place in zip(NAMES, np.random.default_rng(0).permutation(len(paths))):
        shutil.copy(paths[place], tmp_path / "flat" / "val" / name)
        labels.append("abc".index(paths[place].parent.name))
    return tmp_path / "flat", labels


def write(root: Path, lines: list[object], place: str = "val_label.txt", end: str = "\n") -> None:
    (root / place).write_bytes(b"".join(os.fsencode(f"{line}{end}") for line in lines))


def refusal(root: Path, num_classes: int = -1) -> str:
    with pytest.raises(UserError) as caught:
        find_layout(str(root), ("val",), num_classes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def samples(root: Path, config: Config) -> list[tuple[int, bytes]]:
    source = check_data(config, str(root), ("val",)).val
    return [(int(label), source.read(index)) for index, label in enumerate(source.labels)]


@pytest.mark.parametrize("form", ("name label", "val/name label", "label", "tabs and CRLF"))
@pytest.mark.parametrize("place", ("val_label.txt", "val/val_label.txt"))
def test_samples_are_those_of_class_folders(
    flat: tuple[Path, list[int]], image_folder: Path, make_config: MakeConfig, form: str, place: str
) -> None:
    """The same images with the same labels; within a class in the order of their names."""
    root, labels = flat
    if form == "label":
        write(root, list(labels), place)
    elif form == "tabs and CRLF":
        lines: list[object] = [f"{name}\t{label:03d}" for name, label in zip(NAMES, labels)]
        write(root, ["\ufeff" + str(lines[0]), *lines[1:], ""], place, "\r\n")
    else:
        prefix = "val/" if form.startswith("val/") else ""
        write(root, [f"{prefix}{name} {label}" for name, label in zip(NAMES, labels)][::-1], place)
    found = samples(root, make_config())
    assert sorted(found) == sorted(samples(image_folder, make_config()))
    assert [label for label, _ in found] == sorted(labels)


def test_shards_and_predictions_cover_every_image_once(flat: tuple[Path, list[int]], make_config: MakeConfig) -> None:
    root, labels = flat
    write(root, list(labels))
    config, names = make_config(eval_batch_size=2), set()
    for rank in range(3):
        data = EvalData(config, check_data(config, str(root), ("val",)), rank, 3)
        collector = PredictionCollector(data)
        for step in range(data.steps):
            _, label, valid, _ = data.load_batch(step)
            collector.add(step, label, valid, np.eye(3, dtype=np.float32)[label] * 9)
        found = collector.gather({})
        assert found.correct.all() and len(found.names) in (4, 5) and names.isdisjoint(found.names)
        assert [labels[NAMES.index(name[4:])] for name in found.names] == found.labels.tolist()
        names.update(found.names)
    assert names == {f"val/{name}" for name in NAMES}


def test_classes_are_those_of_train_else_of_classes_json_else_numbers(
    flat: tuple[Path, list[int]], image_folder: Path, make_config: MakeConfig
) -> None:
    root, labels = flat
    write(root, list(labels))
    unnamed = find_layout(str(root), ("val",))
    assert (unnamed.class_names, unnamed.known_class_names) == (("0", "1", "2"), None)
    assert len(check_data(make_config(num_classes=10), str(root), ("val",)).class_names) == 10  # a part of ImageNet's
    assert find_class_names(str(root)) == ()
    (root / "classes.json").write_text('["x", "y", "z", "w"]')
    assert find_layout(str(root), ("val",)).known_class_names == ("x", "y", "z", "w")
    assert find_class_names(str(root)) == ("x", "y", "z", "w")
    shutil.copytree(image_folder / "train", root / "train")
    layout = check_data(make_config(), str(root))
    assert layout.known_class_names == ("a", "b", "c")
    assert len(TrainData(make_config(), layout).epoch(0).__next__()) and len(layout.val) == 13


def test_labels_are_not_looked_for_where_there_are_class_folders(image_folder: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(image_folder, tmp_path / "both"))
    write(root, ["nonsense"])
    assert len(find_layout(str(root)).val) == 13


def by_name(change: dict[int, Optional[str]]) -> Callable[[list[int]], list[object]]:
    """The list with some of its lines (from 1) replaced or left out."""

    def lines(labels: list[int]) -> list[object]:
        whole = {line: f"{name} {label}" for line, (name, label) in enumerate(zip(NAMES, labels), 1)}
        return [line for line in {**whole, **change}.values() if line is not None]

    return lines


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (by_name({3: "x.JPEG 1"}), "line 3: .*val holds no image 'x.JPEG'"),
        (by_name({4: f"{NAMES[1]} 1"}), "line 4: '.*0002.JPEG' has a label already, in line 2"),
        (by_name({5: f"{NAMES[4]} 3"}), "line 5: label 3 of '.*0005.JPEG' is not in 0 .. 2; correct it, or --num_cla"),
        (by_name({5: f"{NAMES[4]} 999999999"}), "line 5: label 9+ of .* is not in 0 .. 2"),
        (by_name({5: f"{NAMES[4]} 9999999999"}), "line 5: '9+' is not a label, a number from 0 on"),
        pytest.param(
            by_name({5: f"{NAMES[4]} {'9' * 5_000}"}), r"line 5: '9+\.\.\.9+' is not a label", id="5000 digits"
        ),
        (by_name({6: f"{NAMES[5]} \u00b2"}), "line 6: '\u00b2' is not a label"),
        (by_name({6: f"{NAMES[5]} -1"}), "line 6: '-1' is not a label, a number from 0 on; lines must be"),
        (by_name({7: f"{NAMES[6]} 2 n01440764"}), "line 7: 'n01440764' is not a label"),
        (by_name({7: "2"}), "line 7: a label without a name"),
        (by_name({7: NAMES[6]}), "line 7: '.*0007.JPEG' is not a label"),
        (by_name({8: None, 9: None}), "has no label for '.*0008.JPEG' in .*val .and 1 more.; add a line or remove"),
        (lambda labels: labels[:-1], "holds 12 labels without names, but .*val holds 13 images"),
        (lambda labels: [*labels[:-1], "two"], "line 13: 'two' is not a label"),
        (lambda labels: [1 + label for label in labels], "line .*: label 3 of .* is not in 0 .. 2"),
        (lambda labels: ["", ""], "is empty; it must hold a line `name label` for each image"),
    ],
)
def test_what_does_not_fit_is_named_with_its_line(
    flat: tuple[Path, list[int]], lines: Callable[[list[int]], list[object]], message: str
) -> None:
    root, labels = flat
    write(root, lines(labels))
    with pytest.raises(UserError, match=message):
        find_layout(str(root), ("val",), 3)


def test_labels_of_the_development_kit_are_refused_with_the_reason(flat: tuple[Path, list[int]]) -> None:
    """There, 490 is what networks call 65."""
    root, labels = flat
    assert "each class needs its own folder in it, or val_label.txt the label of each image" in refusal(root)
    write(root, list(labels), "ILSVRC2012_validation_ground_truth.txt")
    message = refusal(root)
    assert "1 to 1000 in an order of its own" in message and "give val_label.txt with lines like" in message
    write(root, list(labels))
    assert len(find_layout(str(root), ("val",)).val) == 13
