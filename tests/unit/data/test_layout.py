"""What check_data finds in a data folder, and the one line with which it refuses one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Callable

import pytest

from focal.config.schema import Config, ConfigError
from focal.data import check_data, find_class_names, with_classes_of
from focal.errors import UserError
from focal.models import create_model

MakeConfig = Callable[..., Config]


@pytest.fixture
def own_folder(image_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(image_folder, tmp_path / "data"))


def _refusal(config: Config, folder: Path, **arguments: object) -> str:
    with pytest.raises(UserError) as caught:
        check_data(config, str(folder), **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_labels_follow_sorted_class_names(image_folder: Path, make_config: MakeConfig) -> None:
    layout = check_data(make_config(), str(image_folder))
    assert layout.class_names == ("a", "b", "c")
    assert layout.train.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 6
    assert layout.val.name(5) == str(image_folder / "val" / "b" / "000.jpg")


def test_splits_are_found_in_a_folder_called_imagenet(
    image_folder: Path, tmp_path: Path, make_config: MakeConfig
) -> None:
    shutil.copytree(image_folder, tmp_path / "imagenet")
    assert len(check_data(make_config(), str(tmp_path)).train) == 22


def test_error_about_a_missing_folder_names_what_was_looked_for(tmp_path: Path, make_config: MakeConfig) -> None:
    assert "is not a folder" in _refusal(make_config(), tmp_path / "nowhere")
    message = _refusal(make_config(), tmp_path)
    for wanted in ("train/", "val/", "imagenet/train", "imagenet/val"):
        assert wanted in message


def test_class_without_images_is_refused(own_folder: Path, make_config: MakeConfig) -> None:
    (own_folder / "train" / "empty").mkdir()
    (own_folder / "train" / "empty" / "notes.txt").write_text("no image")
    assert "class 'empty'" in _refusal(make_config(num_classes=4), own_folder)


def test_class_that_is_in_val_but_not_in_train_is_refused(own_folder: Path, make_config: MakeConfig) -> None:
    (own_folder / "val" / "c").rename(own_folder / "val" / "dog")
    assert "class 'dog'" in _refusal(make_config(), own_folder)


def test_error_about_num_classes_gives_the_right_number(image_folder: Path, make_config: MakeConfig) -> None:
    assert "--num_classes 3" in _refusal(make_config(num_classes=1000), image_folder)


def test_minus_one_takes_the_number_of_classes_from_the_data(image_folder: Path, make_config: MakeConfig) -> None:
    unknown, known = make_config(num_classes=-1), make_config(num_classes=3)
    layout = check_data(unknown, str(image_folder))
    assert with_classes_of(layout, unknown) == known
    assert with_classes_of(layout, known) is known
    with pytest.raises(ConfigError, match="num_classes: -1 needs the data; give --num_classes N"):
        create_model(unknown)


@pytest.mark.parametrize(
    "split, name", [("val", "validation"), ("val", "Test"), ("val", "valid"), ("train", "training")]
)
def test_error_about_a_split_of_another_name_says_what_was_found(
    own_folder: Path, make_config: MakeConfig, split: str, name: str
) -> None:
    (own_folder / split).rename(own_folder / name)
    assert f"has {name}/ but no {split}/; rename it" in _refusal(make_config(), own_folder)
    nested = own_folder / "imagenet"
    nested.mkdir()
    for folder in list(own_folder.iterdir()):
        if folder != nested:
            folder.rename(nested / folder.name)
    assert f"{nested} has {name}/ but no {split}/" in _refusal(make_config(), own_folder)


def test_evaluation_needs_val_only(own_folder: Path, make_config: MakeConfig) -> None:
    shutil.rmtree(own_folder / "train")
    assert "train/" in _refusal(make_config(), own_folder)
    layout = check_data(make_config(), str(own_folder), splits=("val",))
    assert layout.train is None
    assert len(layout.val) == 13


def test_evaluation_takes_labels_from_the_classes_of_train_if_there_is_a_train(
    own_folder: Path, make_config: MakeConfig
) -> None:
    shutil.rmtree(own_folder / "val" / "a")
    layout = check_data(make_config(), str(own_folder), splits=("val",))
    assert layout.val.labels.tolist() == [1] * 4 + [2] * 4


def test_evaluation_ignores_an_empty_train_folder(own_folder: Path, make_config: MakeConfig) -> None:
    shutil.rmtree(own_folder / "train")
    (own_folder / "train").mkdir()
    assert "no class folders" in _refusal(make_config(), own_folder)
    assert check_data(make_config(), str(own_folder), splits=("val",)).class_names == ("a", "b", "c")


def test_sub_folders_belong_to_their_class_and_other_and_hidden_files_are_ignored(
    own_folder: Path, make_config: MakeConfig
) -> None:
    (own_folder / "train" / ".cache").mkdir()
    (own_folder / "train" / "a" / "more").mkdir()
    (own_folder / "train" / "a" / "000.jpg").rename(own_folder / "train" / "a" / "more" / "X.JPEG")
    (own_folder / "train" / "a" / "list.txt").write_text("")
    (own_folder / "train" / "a" / "._000.jpg").write_bytes(b"left by macOS")
    (own_folder / "train" / "a" / ".trash").mkdir()
    (own_folder / "train" / "a" / ".trash" / "000.jpg").write_bytes(b"")
    layout = check_data(make_config(), str(own_folder))
    assert len(layout.train) == 22
    assert layout.train.name(7) == str(own_folder / "train" / "a" / "more" / "X.JPEG")
    assert layout.train.read(7)[:2] == b"\xff\xd8"


def test_network_without_three_input_channels_is_refused(image_folder: Path, make_config: MakeConfig) -> None:
    assert "--in_channels 3" in _refusal(make_config(in_channels=1), image_folder)


def test_folder_that_cannot_be_listed_is_named(
    image_folder: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: str) -> None:
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr("os.scandir", refuse)
    assert f"cannot read {image_folder / 'train'} (Permission denied)" in _refusal(make_config(), image_folder)


def test_class_names_alone_come_from_train_if_there_is_a_train(image_folder: Path, tmp_path: Path) -> None:
    assert find_class_names(str(image_folder)) == ("a", "b", "c")
    for split, names in (("train", ("b", "a", "c", ".ipynb_checkpoints")), ("val", ("a", "b", "d"))):
        for name in names:
            (tmp_path / "imagenet" / split / name).mkdir(parents=True)
    assert find_class_names(str(tmp_path)) == ("a", "b", "c")  # those of train, not of val
    assert find_class_names(str(tmp_path / "imagenet" / "val")) == ()
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "val.mindrecord0").write_bytes(b"")
    assert find_class_names(str(tmp_path / "records")) == ()
    (tmp_path / "records" / "classes.json").write_text('["x", "y"]')
    assert find_class_names(str(tmp_path / "records")) == ("x", "y")
