"""MindRecord files hold the samples of their folder, MindSpore can read them, and damage is named."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sqlite3
import sys
from pathlib import Path
from typing import Callable

import numpy as np
import pytest
from PIL import Image

from focal.config.schema import Config
from focal.data import check_data
from focal.data.decode import decode_rgb
from focal.data.layout import find_layout
from focal.data.mindrecord import find_shards, shrink
from focal.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[3]


def convert(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """scripts/make_mindrecord.py with these arguments."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))
    import make_mindrecord

    monkeypatch.setattr(sys, "argv", ["make_mindrecord.py", *arguments])
    make_mindrecord.main()


@pytest.fixture(scope="module")
def converted(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`image_folder` in three shards per split, converted once: each file takes 50 MB."""
    output = tmp_path_factory.mktemp("records") / "mr"
    with pytest.MonkeyPatch.context() as monkeypatch:
        convert(monkeypatch, "--data_url", str(image_folder), "--output", str(output), "--shards", "3")
    return output


@pytest.fixture
def records(converted: Path, tmp_path: Path) -> Path:
    """Hard links to the converted files; a test may remove or replace them, but must not write into them."""
    return Path(shutil.copytree(converted, tmp_path / "mr", copy_function=os.link))


def _replace(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def test_samples_are_those_of_the_folder_in_the_same_order(
    image_folder: Path, records: Path, make_config: Callable[..., Config]
) -> None:
    folder, converted = (check_data(make_config(), str(root)) for root in (image_folder, records))
    assert converted.class_names == folder.class_names
    for split in ("train", "val"):
        expected, found = getattr(folder, split), getattr(converted, split)
        assert found.labels.tolist() == expected.labels.tolist()
        assert [found.read(i) for i in range(len(found))] == [expected.read(i) for i in range(len(expected))]
    assert converted.val.name(5).endswith(":b/000.jpg")


def test_mindspores_own_reader_gives_the_same_rows(records: Path) -> None:
    import mindspore.dataset as ds

    source = find_layout(str(records)).train
    shards = find_shards(str(records), "train")
    assert len(shards) == 3
    rows = ds.MindDataset(shards, shuffle=False).create_dict_iterator(num_epochs=1, output_numpy=True)
    theirs = {str(row["file_name"]): (int(row["label"]), row["image"].tobytes()) for row in rows}
    ours = {source.name(i).split(":")[1]: (int(source.labels[i]), source.read(i)) for i in range(len(source))}
    assert len(ours) == 22 and theirs == ours


def test_short_side_shrinks_but_never_enlarges(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "small"
    convert(monkeypatch, "--data_url", str(image_folder), "--output", str(out), "--shards", "1", "--short_side", "20")
    source = find_layout(str(out)).val
    assert decode_rgb(source.read(0)).size == (24, 20)  # of 48 x 40
    original = find_layout(str(image_folder)).val.read(0)
    assert shrink(original, 40) == original
    assert shrink(b"no image", 40) == b"no image"
    wide = io.BytesIO()
    Image.new("RGB", (90, 30), "red").save(wide, "PNG")
    assert decode_rgb(shrink(wide.getvalue(), 10)).size == (30, 10)


def test_second_conversion_into_the_same_folder_is_refused(
    image_folder: Path, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="already"):
        convert(monkeypatch, "--data_url", str(image_folder), "--output", str(records))
    with pytest.raises(UserError, match="MindRecord files already"):
        convert(monkeypatch, "--data_url", str(records), "--output", str(records / "again"))


@pytest.mark.parametrize("missing", ("train.mindrecord1", "train.mindrecord0.db"))
def test_missing_file_is_named(records: Path, make_config: Callable[..., Config], missing: str) -> None:
    (records / missing).unlink()
    with pytest.raises(UserError) as caught:
        check_data(make_config(), str(records))
    assert missing in str(caught.value) and "\n" not in str(caught.value)


def test_index_that_lacks_rows_is_refused(records: Path, make_config: Callable[..., Config]) -> None:
    index = records / "train.mindrecord1.db"
    _replace(index, index.read_bytes())  # a copy, which may be written into
    with contextlib.closing(sqlite3.connect(index)) as database:
        database.execute("DELETE FROM INDEXES WHERE ROW_ID = 1")
        database.commit()
    with pytest.raises(UserError, match=r"its index lists (6 of 7|7 of 8) images"):
        check_data(make_config(), str(records))


@pytest.mark.parametrize("name", ("a#1", "a?x", "a %20", "ä b"))
def test_folder_name_may_contain_any_character(records: Path, tmp_path: Path, name: str) -> None:
    records.rename(tmp_path / name)
    assert len(find_layout(str(tmp_path / name)).train) == 22
    assert len(find_layout(f"/{tmp_path / name}").train) == 22  # the path begins with two slashes


def test_split_with_other_classes_is_not_added_to_a_folder(
    image_folder: Path, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "val"):
        for new, old in (("x", "a"), ("y", "b"), ("z", "c")):
            shutil.copytree(image_folder / split / old, tmp_path / "other" / split / new)
    for path in records.glob("val.mindrecord*"):
        path.unlink()
    before = (records / "classes.json").read_text()
    with pytest.raises(UserError, match="lists other classes than the data"):
        convert(monkeypatch, "--data_url", str(tmp_path / "other"), "--output", str(records), "--splits", "val")
    assert (records / "classes.json").read_text() == before and not list(records.glob("val*"))


def test_refused_conversion_leaves_nothing_behind(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="output: .* cannot be written"):
            convert(monkeypatch, "--data_url", str(image_folder), "--output", str(output))
    shutil.copytree(image_folder, tmp_path / "named")
    (tmp_path / "named" / "val" / "a" / "000.jpg").rename(tmp_path / "named" / "val" / "a" / os.fsdecode(b"\xff.jpg"))
    with pytest.raises(UserError, match="not UTF-8, which MindRecord needs"):
        convert(monkeypatch, "--data_url", str(tmp_path / "named"), "--output", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_failed_conversion_removes_its_files(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mindspore.mindrecord

    def full(self: object) -> None:
        raise RuntimeError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(mindspore.mindrecord.FileWriter, "commit", full)
        with pytest.raises(UserError, match="train cannot be written to .*No space left"):
            convert(patch, "--data_url", str(image_folder), "--output", str(tmp_path / "out"), "--shards", "1")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["classes.json"]


def test_damaged_header_and_wrong_class_names_are_refused(records: Path, make_config: Callable[..., Config]) -> None:
    with pytest.raises(UserError, match="--num_classes 3"):
        check_data(make_config(num_classes=7), str(records))
    _replace(records / "classes.json", b'["a", "b"]')
    with pytest.raises(UserError, match="label 2"):
        check_data(make_config(), str(records))
    _replace(records / "classes.json", b'{"a": 1}')
    with pytest.raises(UserError, match="JSON list"):
        check_data(make_config(), str(records))
    _replace(records / "train.mindrecord0", b"nonsense" * 10)
    with pytest.raises(UserError, match="not a MindRecord"):
        check_data(make_config(), str(records))


def test_without_class_names_the_labels_are_the_names(records: Path, make_config: Callable[..., Config]) -> None:
    (records / "classes.json").unlink()
    layout = check_data(make_config(), str(records))
    assert layout.class_names == ("0", "1", "2")
    assert np.bincount(layout.train.labels).tolist() == [8, 8, 6]
