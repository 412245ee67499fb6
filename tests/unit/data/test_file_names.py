"""File and class names of any bytes go through batches, predictions, conversion and messages."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Callable

import numpy as np
import pytest

from focal.config.schema import Config
from focal.data import EvalData, TrainData, check_data
from focal.data.layout import find_layout
from focal.errors import UserError, printable
from focal.predictions import PredictionCollector, Predictions
from tests.unit.data.test_mindrecord import convert

MakeConfig = Callable[..., Config]
NOT_UTF8 = os.fsdecode(b"\xff\xfe.jpg")
ODD = (
    "with  spaces .jpg",
    'it\'s "quoted".jpg',
    "line\nbreak.jpg",
    "图片 一.jpg",
    "100%s {x} #?.jpg",
    "-flag.jpg",
    NOT_UTF8,
)


@pytest.fixture
def odd_folder(image_folder: Path, tmp_path: Path) -> Path:
    """`image_folder` with the images of class a, in both splits, and class b renamed."""
    root = Path(shutil.copytree(image_folder, tmp_path / "it's 数据"))
    for split in ("train", "val"):
        images = sorted((root / split / "a").iterdir())
        for image, name in zip(images, ODD[-5:] if split == "val" else ODD):
            image.rename(image.with_name(name))
        (root / split / "b").rename(root / split / "b 'é'\n")
    return root


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a b'\"图\u3000片.jpg", None),
        ("a\nb\t\x7f\u2028.jpg", r"a\nb\t\x7f\u2028.jpg"),
        (NOT_UTF8, r"\udcff\udcfe.jpg"),
    ],
)
def test_a_printable_name_is_one_line_of_text(name: str, expected: str) -> None:
    assert printable(name) == (expected or name)
    printable(name).encode()


@pytest.mark.parametrize("processes", (False, True))
def test_images_are_read_counted_and_named_whatever_they_are_called(
    odd_folder: Path, make_config: MakeConfig, caplog: pytest.LogCaptureFixture, tmp_path: Path, processes: bool
) -> None:
    (odd_folder / "train" / "a" / NOT_UTF8).write_bytes(b"")
    (odd_folder / "val" / "a" / "line\nbreak.jpg").write_bytes(b"")
    config = make_config(worker_processes=processes, batch_size=2, eval_batch_size=4)
    layout = check_data(config, str(odd_folder))
    assert layout.class_names == ("a", "b 'é'\n", "c")
    train, val = TrainData(config, layout), EvalData(config, layout)
    assert len(list(train.epoch(0))) == 11 and list(train.unreadable) == [str(odd_folder / "train" / "a" / NOT_UTF8)]
    (warning,) = [record.getMessage() for record in caplog.records if "unreadable" in record.getMessage()]
    assert warning.endswith(r"a/\udcff\udcfe.jpg")
    collector = PredictionCollector(val)
    for step, (_, labels, valid) in enumerate(val):
        collector.add(step, labels, valid, np.eye(3, dtype=np.float32)[labels])
    assert val.unreadable == [str(odd_folder / "val" / "a" / "line\nbreak.jpg")]
    collector.gather({}).save(tmp_path / "predictions.npz")
    found = Predictions.load(tmp_path / "predictions.npz")
    assert found.class_names == layout.class_names and len(found.names) == 12
    assert {name for name in found.names if name.startswith("val/a/")} == {
        f"val/a/{name}" for name in ODD[-5:] if "\n" not in name
    }


def test_mindrecord_takes_every_name_that_is_utf8_and_refuses_others_by_name(
    odd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--data_url", str(odd_folder), "--output", str(tmp_path / "mr"), "--shards", "1", "--splits", "val")
    with pytest.raises(UserError, match=r"^data_url: the name of 'a/\\udcff\\udcfe.jpg' is not UTF-8"):
        convert(monkeypatch, *arguments)
    (odd_folder / "val" / "a" / NOT_UTF8).unlink()
    convert(monkeypatch, *arguments)
    source = find_layout(str(odd_folder), ("val",)).val
    layout = find_layout(str(tmp_path / "mr"), ("val",))
    assert layout.class_names == ("a", "b 'é'\n", "c")
    names = [layout.val.name(index).split(":", 1)[1] for index in range(len(layout.val))]
    assert names == [source.relative_name(index) for index in range(len(source))] and len(names) == 12
    assert all(layout.val.read(index) == source.read(index) for index in range(12))


def test_a_list_of_labels_takes_every_name_without_a_line_break(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    names = [name for name in ODD if "\n" not in name]
    for name in names:
        shutil.copy(image_folder / "val" / "a" / "000.jpg", tmp_path / "val" / name)
    lines = b"".join(os.fsencode(name) + b" 2\n" for name in names)
    (tmp_path / "val_label.txt").write_bytes(lines)
    assert len(find_layout(str(tmp_path), ("val",)).val) == len(names)
    shutil.copy(image_folder / "val" / "a" / "000.jpg", tmp_path / "val" / "line\nbreak.jpg")
    with pytest.raises(UserError, match=r"no label for 'line\\nbreak.jpg'"):
        find_layout(str(tmp_path), ("val",))
