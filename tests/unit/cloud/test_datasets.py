"""Choosing among delivered datasets, and archives."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from focal.cloud.datasets import archive_stem, choose_dataset, unpack_archives
from focal.errors import UserError


def make(folder: Path) -> Path:
    """A tiny dataset."""
    for split in ("train", "val"):
        (folder / split / "cat").mkdir(parents=True)
        (folder / split / "cat" / "1.jpg").write_bytes(split.encode())
    return folder


def test_a_folder_with_train_and_val_is_the_dataset(tmp_path: Path) -> None:
    make(tmp_path)
    assert choose_dataset(tmp_path, "whatever") == tmp_path


def test_a_folder_with_imagenet_in_it_is_the_dataset(tmp_path: Path) -> None:
    make(tmp_path / "imagenet")
    assert choose_dataset(tmp_path, "x") == tmp_path  # the data's layout knows imagenet/train


@pytest.mark.parametrize("place", ["digits", "digits/digits"])
def test_the_only_dataset_below_a_folder_is_found(tmp_path: Path, place: str) -> None:
    make(tmp_path / place)
    (tmp_path / "readme.txt").write_text("x")
    assert choose_dataset(tmp_path, "./data/imagenet") == tmp_path / place


def test_several_datasets_need_a_name(tmp_path: Path) -> None:
    make(tmp_path / "digits")
    make(tmp_path / "flowers")
    assert choose_dataset(tmp_path, "obs://bucket/flowers/") == tmp_path / "flowers"
    with pytest.raises(UserError, match=r"several datasets \(digits, flowers\); name one of them: --data_url NAME"):
        choose_dataset(tmp_path, "./data/imagenet")


def test_a_folder_of_mindrecord_files_is_a_dataset(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.mindrecord0").write_bytes(b"")
    assert choose_dataset(tmp_path, "") == tmp_path / "set"


def test_an_empty_folder_is_left_to_the_check_of_the_data(tmp_path: Path) -> None:
    assert choose_dataset(tmp_path, "") == tmp_path


@pytest.mark.parametrize(
    ("name", "stem"), [("a.tar.gz", "a"), ("a.tgz", "a"), ("A.ZIP", "A"), ("a.tar", "a"), ("a.jpg", ""), ("tar", "")]
)
def test_archives_are_recognised_by_their_names(name: str, stem: str) -> None:
    assert archive_stem(name) == stem


@pytest.mark.parametrize("kind", ["gztar", "zip"])
def test_archives_are_unpacked_once(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "mounted"
    source.mkdir()
    archive = Path(shutil.make_archive(str(source / "digits"), kind, make(tmp_path / "made")))
    unpack_archives(source, tmp_path / "cache")
    image = tmp_path / "cache" / "digits" / "train" / "cat" / "1.jpg"
    assert image.read_bytes() == b"train"
    assert archive.exists()
    image.write_bytes(b"changed")
    unpack_archives(source, tmp_path / "cache")
    assert image.read_bytes() == b"changed"  # not unpacked again


def test_a_half_unpacked_archive_is_done_again(tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "digits"), "zip", make(tmp_path / "made"))
    (tmp_path / ".partial.digits" / "train").mkdir(parents=True)  # what a killed job leaves
    unpack_archives(tmp_path, tmp_path)
    assert (tmp_path / "digits" / "val" / "cat" / "1.jpg").read_bytes() == b"val"
    assert not (tmp_path / ".partial.digits").exists()


def test_copies_of_archives_are_removed_once_unpacked(tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "digits"), "zip", make(tmp_path / "made")))
    unpack_archives(tmp_path, tmp_path, remove=True)
    assert not archive.exists() and (tmp_path / "digits" / "train" / "cat" / "1.jpg").exists()


def replaced_archive(tmp_path: Path) -> Path:
    """A folder with digits.zip, whose train/cat/2.jpg was 1.jpg in the version unpacked to `cache` before."""
    source = tmp_path / "mounted"
    source.mkdir()
    made = make(tmp_path / "made")
    shutil.make_archive(str(source / "digits"), "zip", made)
    unpack_archives(source, tmp_path / "cache")
    (made / "train" / "cat" / "1.jpg").rename(made / "train" / "cat" / "2.jpg")
    shutil.make_archive(str(source / "digits"), "zip", made)
    return source


def test_another_archive_of_the_same_name_replaces_what_the_first_left(tmp_path: Path) -> None:
    source = replaced_archive(tmp_path)
    unpack_archives(source, tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache" / "digits" / "train" / "cat").iterdir()] == ["2.jpg"]


@pytest.mark.parametrize("renames", [1, 2])
def test_a_kill_while_one_archive_replaces_another_leaves_neither_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    source = replaced_archive(tmp_path)
    real, done = Path.rename, []

    def rename(self: Path, target: Path) -> Path:
        done.append(target)
        if len(done) == renames:
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        patch.setattr("focal.cloud.datasets.shutil.rmtree", lambda *arguments, **options: None)  # a kill leaves all
        with pytest.raises(KeyboardInterrupt):
            unpack_archives(source, tmp_path / "cache")
    unpack_archives(source, tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache" / "digits" / "train" / "cat").iterdir()] == ["2.jpg"]
    assert choose_dataset(tmp_path / "cache", "") == tmp_path / "cache" / "digits"


def test_a_folder_of_the_users_beside_an_archive_stays_and_so_does_the_archive(tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "digits"), "zip", make(tmp_path / "made")))
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "mine.txt").write_text("mine")
    unpack_archives(tmp_path, tmp_path, remove=True)
    assert archive.exists() and [path.name for path in (tmp_path / "digits").iterdir()] == ["mine.txt"]


def test_two_archives_of_one_name_are_refused(tmp_path: Path) -> None:
    made = make(tmp_path / "made")
    archives = [Path(shutil.make_archive(str(tmp_path / "digits"), kind, made)) for kind in ("tar", "zip")]
    archives += [Path(shutil.make_archive(str(tmp_path / "digits.v2"), "zip", made))]  # between them by name
    with pytest.raises(UserError, match="digits.tar and .*digits.zip would be unpacked to the same folder"):
        unpack_archives(tmp_path, tmp_path / "cache", remove=True)
    assert all(archive.exists() for archive in archives)


def test_an_unfinished_folder_is_not_a_dataset(tmp_path: Path) -> None:
    make(tmp_path / ".partial.digits")
    assert choose_dataset(tmp_path, "") == tmp_path


def test_without_archives_nothing_happens(tmp_path: Path) -> None:
    unpack_archives(tmp_path, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_archive_is_an_error_and_leaves_no_dataset(tmp_path: Path) -> None:
    (tmp_path / "digits.zip").write_bytes(b"not a zip")
    with pytest.raises(UserError, match="digits.zip"):
        unpack_archives(tmp_path, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["digits.zip"]


def test_a_place_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "digits"), "zip", make(tmp_path / "made"))
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match="cannot unpack .*digits.zip.*--cache_dir"):
        unpack_archives(tmp_path, tmp_path / "cache")
