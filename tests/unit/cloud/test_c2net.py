"""OpenI storage with the real c2net package in MOUNT mode; in MOXING mode c2net copies with the stand-in moxing."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from focal.cloud.c2net import CACHE_MARK, C2netStorage, call_c2net
from focal.cloud.storage import Storage, detect_platform, on_cloud_platform, open_storage, resolve_output_folder
from focal.config import load_config
from focal.distributed.device import Device
from focal.errors import UserError
from tests.unit.cloud.fake_moxing import FakeFile, make_moxing

pytest.importorskip("c2net", reason="c2net is not installed: pip install -r requirements-dev.txt")


def make_dataset(folder: Path) -> Path:
    for split in ("train", "val"):
        (folder / split / "cat").mkdir(parents=True)
        (folder / split / "cat" / "1.jpg").write_bytes(split.encode())
    return folder


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folders and variables of an OpenI task whose data is mounted."""
    folders = {
        "LOCAL_CODE_PATH": "code",
        "LOCAL_DATASET_PATH": "dataset",
        "LOCAL_PRETRAIN_MODEL_PATH": "pretrainmodel",
        "LOCAL_OUTPUT_PATH": "output",
        "LOCAL_TENSORBOARD_PATH": "tensorboard",
    }
    for variable, name in folders.items():
        monkeypatch.setenv(variable, str(tmp_path / name))
    monkeypatch.setenv("DATA_DOWNLOAD_METHOD", "MOUNT")
    for variable in ("DATASET_URL", "OUTPUT_URL", "CODE_URL", "PRETRAIN_MODEL_URL", "DATASET_NEED_UNZIP"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "dataset").mkdir()
    return tmp_path


def storage(task: Path, **keys: Any) -> Storage:
    config = load_config({"device_target": "CPU", "cache_dir": str(task / "cache"), **keys})
    return open_storage(config, Device())


def test_c2net_is_detected_with_and_without_the_flag(task: Path) -> None:
    assert isinstance(storage(task), C2netStorage)
    assert isinstance(storage(task, run_openi=True), C2netStorage)
    assert on_cloud_platform({"DATA_DOWNLOAD_METHOD": "MOUNT", "LOCAL_DATASET_PATH": "/d"})
    assert not on_cloud_platform({})
    assert detect_platform(True, {}) == "moxing"


def test_mounted_data_is_used_in_place(task: Path, capsys: pytest.CaptureFixture) -> None:
    make_dataset(task / "dataset" / "digits")
    place = storage(task)
    assert place.data_folder() == str(task / "dataset" / "digits")
    assert (task / "dataset" / CACHE_MARK).exists()  # the real package ran
    assert "c2net-pypi" not in capsys.readouterr().out  # its banner does not reach the terminal


def test_data_url_chooses_among_several_mounted_datasets(task: Path) -> None:
    make_dataset(task / "dataset" / "digits")
    make_dataset(task / "dataset" / "flowers")
    assert storage(task, data_url="flowers").data_folder() == str(task / "dataset" / "flowers")
    with pytest.raises(UserError, match=r"several datasets \(digits, flowers\)"):
        storage(task).data_folder()


def test_results_go_where_the_platform_takes_them(task: Path) -> None:
    make_dataset(task / "dataset")
    with storage(task, train_url="./elsewhere") as place:
        assert place.output_folder == str(task / "output")
        assert place.tensorboard_folder == str(task / "tensorboard")
        Path(place.output_folder).mkdir(exist_ok=True)
        (task / "output" / "last.ckpt").write_text("x")
        place.send_results()
    assert (task / "output" / "last.ckpt").read_text() == "x"


@pytest.mark.parametrize("kind", ["gztar", "zip"])
def test_archives_that_c2net_has_unpacked_are_used(task: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setenv("DATASET_NEED_UNZIP", "true")
    shutil.make_archive(str(task / "dataset" / "digits"), kind, make_dataset(task / "made"))
    folder = Path(storage(task).data_folder())
    assert folder == task / "dataset" / "digits"
    assert (folder / "train" / "cat" / "1.jpg").read_bytes() == b"train"


def test_an_archive_that_c2net_cannot_unpack_is_an_error(task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATASET_NEED_UNZIP", "true")
    (task / "dataset" / "digits.zip").write_bytes(b"not a zip")
    with pytest.raises(UserError, match="c2net: Extraction failed for .*digits.zip"):
        storage(task).data_folder()
    with pytest.raises(UserError, match="c2net: "):  # nor does c2net's mark of completeness hide it the next time
        storage(task).data_folder()


@pytest.mark.parametrize("kind", ["gztar", "zip"])
def test_archives_that_are_mounted_as_they_are_unpack_into_the_cache(task: Path, kind: str) -> None:
    archive = Path(shutil.make_archive(str(task / "dataset" / "digits"), kind, make_dataset(task / "made")))
    folder = Path(storage(task).data_folder())
    assert folder == task / "cache" / "data" / "digits"
    assert (folder / "val" / "cat" / "1.jpg").read_bytes() == b"val" and archive.exists()


def test_an_archive_that_was_unpacked_in_part_is_unpacked_by_the_next_job(
    task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """c2net's mark says that its own work is done, and nothing of ours."""
    shutil.make_archive(str(task / "dataset" / "digits"), "gztar", make_dataset(task / "made"))

    def kill(archive: Path, folder: Path) -> None:
        make_dataset(Path(folder))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("focal.cloud.datasets.unpack_archive", kill)
        patch.setattr("focal.cloud.datasets.shutil.rmtree", lambda *arguments, **options: None)  # a kill leaves all
        with pytest.raises(KeyboardInterrupt):
            storage(task).data_folder()
    assert (task / "cache" / "data" / ".partial.digits" / "train").is_dir()
    assert (task / "dataset" / CACHE_MARK).exists()
    assert Path(storage(task).data_folder()) == task / "cache" / "data" / "digits"


def test_c2net_may_create_the_folder_of_the_data_itself(task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In MOXING mode there is none before."""
    make_dataset(task / "made")
    (task / "dataset").rmdir()
    place = storage(task)
    monkeypatch.setattr(place._context, "prepare", lambda: shutil.copytree(task / "made", task / "dataset"))
    assert place.data_folder() == str(task / "dataset")


def test_a_task_without_a_dataset_is_an_error(task: Path) -> None:
    with pytest.raises(UserError, match="dataset is empty: choose a dataset when creating the task"):
        storage(task).data_folder()


def test_a_missing_variable_is_named(task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset(task / "dataset")
    monkeypatch.delenv("LOCAL_PRETRAIN_MODEL_PATH")
    with pytest.raises(UserError, match="c2net: .*LOCAL_PRETRAIN_MODEL_PATH"):
        storage(task).data_folder()
    monkeypatch.delenv("LOCAL_OUTPUT_PATH")
    with pytest.raises(UserError, match="LOCAL_OUTPUT_PATH is not set"):
        storage(task)


def test_an_unknown_download_method_is_an_error(task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset(task / "dataset")
    monkeypatch.setenv("DATA_DOWNLOAD_METHOD", "PIGEON")
    with pytest.raises(UserError, match="c2net: Unknown data download method: PIGEON"):
        storage(task).data_folder()


def test_a_missing_package_is_an_error_with_the_command_that_installs_it(
    task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "c2net.context", None)
    with pytest.raises(UserError, match=r"c2net cannot be imported .* pip install c2net==0\.2\.0"):
        storage(task)


def test_weights_are_found_among_the_models_of_the_task(task: Path) -> None:
    (task / "pretrainmodel" / "mine").mkdir(parents=True)
    (task / "pretrainmodel" / "mine" / "best.ckpt").write_text("x")
    assert storage(task, pretrained="best.ckpt").pretrained() == str(task / "pretrainmodel" / "mine" / "best.ckpt")
    assert storage(task, pretrained="other.ckpt").pretrained() == "other.ckpt"
    of_teacher = storage(task, distillation="soft", teacher="obs://b/best.ckpt").teacher()
    assert of_teacher == str(task / "pretrainmodel" / "mine" / "best.ckpt")
    assert storage(task, resume="auto").resume() == "auto"
    assert storage(task).pretrained() is None


def test_an_error_that_is_only_printed_is_raised(capsys: pytest.CaptureFixture) -> None:
    def upload() -> None:
        print("\u274c moxing upload /out to obs://x failed: denied")

    with pytest.raises(UserError, match="c2net: moxing upload /out to obs://x failed: denied"):
        call_c2net(upload)
    assert capsys.readouterr().out == ""


def test_a_c2net_that_exits_is_an_error() -> None:
    def exits() -> None:
        raise SystemExit(0)

    with pytest.raises(UserError, match=r"c2net: it ended with sys\.exit\(0\)"):
        call_c2net(exits)


def test_the_output_folder_is_known_before_the_storage_is_opened(task: Path) -> None:
    environ = {"DATA_DOWNLOAD_METHOD": "MOUNT", "LOCAL_DATASET_PATH": "/d", "LOCAL_OUTPUT_PATH": "/o"}
    assert resolve_output_folder(load_config({"device_target": "CPU"}), environ) == "/o"
    local = load_config({"device_target": "CPU", "train_url": "./here"})
    assert resolve_output_folder(local, {}) == "./here"
    cloud = load_config({"run_openi": True, "train_url": "obs://b/o", "cache_dir": "/c"})
    assert resolve_output_folder(cloud, {}) == "/c/output"


# ---- MOXING mode: c2net copies by moxing, prints errors, and returns as if all were well


@pytest.fixture
def bucket(task: Path, monkeypatch: pytest.MonkeyPatch) -> FakeFile:
    module = make_moxing(task / "store")
    monkeypatch.setitem(sys.modules, "moxing", module)
    monkeypatch.delitem(sys.modules, "c2net.context.moxing_helper", raising=False)
    make_dataset(task / "store" / "bucket" / "digits")
    monkeypatch.setenv("DATA_DOWNLOAD_METHOD", "MOXING")
    listed = [{"dataset_url": "obs://bucket/digits", "dataset_name": "digits"}]
    monkeypatch.setenv("DATASET_URL", json.dumps(listed))
    monkeypatch.setenv("PRETRAIN_MODEL_URL", "[]")
    monkeypatch.setenv("CODE_URL", "")
    monkeypatch.setenv("OUTPUT_URL", "obs://bucket/out")
    return module.file


def test_data_is_copied_once(task: Path, bucket: FakeFile) -> None:
    assert storage(task).data_folder() == str(task / "dataset" / "digits")
    assert len(bucket.calls) == 1
    assert storage(task).data_folder() == str(task / "dataset" / "digits")
    assert len(bucket.calls) == 1  # prepared before


def test_a_swallowed_copy_error_is_raised_and_repeated(task: Path, bucket: FakeFile, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    bucket.failures = [lambda: (_ for _ in ()).throw(OSError("denied"))]
    assert storage(task).data_folder() == str(task / "dataset" / "digits")
    assert "attempt 1 failed (c2net: moxing download obs://bucket/digits" in caplog.text
    shutil.rmtree(task / "dataset")
    (task / "dataset").mkdir()
    bucket.failures = [lambda: (_ for _ in ()).throw(OSError("denied"))] * 9
    with pytest.raises(UserError, match="c2net: moxing download .* failed: denied"):
        storage(task).data_folder()


def test_results_are_sent_to_output_url(task: Path, bucket: FakeFile) -> None:
    bucket.failures = [lambda: (_ for _ in ()).throw(OSError("busy"))]
    with storage(task) as place:
        Path(place.output_folder).mkdir(exist_ok=True)
        (task / "output" / "last.ckpt").write_text("x")
    assert (task / "store" / "bucket" / "out" / "last.ckpt").read_text() == "x"
    assert (task / "output" / "last.ckpt").exists()
