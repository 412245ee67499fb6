"""Data from ModelArts' storage, a stand-in: which is copied and checked, and what happens when copying goes wrong."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any, Callable

import pytest

from focal.cloud.moxing import RECORD, Source, import_moxing, parse_sources
from focal.errors import UserError
from tests.unit.cloud.fake_moxing import FakeFile
from tests.unit.cloud.moxing_job import names, server, storage

# ---- the package


def test_the_public_package_of_that_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "moxing", ModuleType("moxing"))
    with pytest.raises(UserError, match="no file.copy_parallel: the public package of that name is something else"):
        import_moxing()


def test_a_missing_package_is_an_error_that_says_where_to_find_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "moxing", None)
    with pytest.raises(UserError, match="cannot be imported .* image of ModelArts or OpenI, .* leave out --run_openi"):
        import_moxing()


def test_a_package_that_fails_while_imported_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "moxing.py").write_text("raise RuntimeError('no GPU found')")
    monkeypatch.delitem(sys.modules, "moxing", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="no GPU found"):
        import_moxing()


def test_the_platforms_package_is_not_needed_for_mounted_data_and_local_results(
    tmp_path: Path, bucket: FakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "moxing", None)
    mounted = tmp_path / "cache" / "sfs" / "data" / "imagenet"
    shutil.copytree(bucket.root / "bucket" / "digits", mounted)
    place = storage(tmp_path, data_url="./data/imagenet", train_url=str(tmp_path / "out"))
    assert place.data_folder() == str(mounted)
    place.close()


# ---- flags


def test_platform_flags_are_listed(tmp_path: Path, bucket: FakeFile, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    storage(tmp_path, ("--grampus_code_file_name", "x.zip", "--owner=me"))
    assert "flags of the platform, not settings of this job: --grampus_code_file_name x.zip --owner=me" in caplog.text


@pytest.mark.parametrize("text", ["{", "[1]", '[{"dataset_url": "obs://b/x"}]', "3"])
def test_a_broken_multi_data_url_is_an_error(text: str) -> None:
    with pytest.raises(UserError, match="multi_data_url: not a JSON list"):
        parse_sources(text, "obs://bucket/digits")


def test_sources_are_read_from_the_flag_or_from_data_url() -> None:
    one = json.dumps([{"dataset_url": "obs://b/x", "dataset_name": "x"}])
    assert parse_sources(one, "") == [Source("obs://b/x", "")]
    assert parse_sources("[]", "obs://b/x.tar.gz") == [Source("obs://b/x.tar.gz", "x.tar.gz")]
    assert parse_sources("", "./data") == []
    outside = json.dumps([{"dataset_url": "obs://b/x.zip", "dataset_name": "../../x.zip"}])
    assert parse_sources(outside, "")[0].name == "x.zip"  # a name cannot lead out of the folder


# ---- data


def test_one_dataset_lands_in_the_data_folder(tmp_path: Path, bucket: FakeFile) -> None:
    folder = Path(storage(tmp_path).data_folder())
    assert folder == tmp_path / "cache" / "data"
    assert names(folder) - {RECORD} == names(bucket.root / "bucket" / "digits")


def test_several_datasets_land_beside_each_other(tmp_path: Path, bucket: FakeFile) -> None:
    listed = [{"dataset_url": f"obs://bucket/{name}", "dataset_name": name} for name in ("digits", "flowers")]
    place = storage(tmp_path, ("--multi_data_url", json.dumps(listed)), data_url="obs://bucket/flowers")
    assert place.data_folder() == str(tmp_path / "cache" / "data" / "flowers")
    assert (tmp_path / "cache" / "data" / "digits" / "val" / "cat" / "2.jpg").exists()


def test_a_second_job_does_not_copy_again(tmp_path: Path, bucket: FakeFile) -> None:
    storage(tmp_path).data_folder()
    storage(tmp_path).data_folder()
    assert [call[0] for call in bucket.calls] == ["copy_parallel"]


def test_other_sources_replace_what_an_earlier_job_copied(tmp_path: Path, bucket: FakeFile) -> None:
    storage(tmp_path).data_folder()
    (bucket.root / "bucket" / "flowers" / "train" / "rose").mkdir()
    (bucket.root / "bucket" / "flowers" / "train" / "rose" / "1.jpg").write_bytes(b"rose")
    (bucket.root / "bucket" / "digits" / "train" / "cat" / "9.jpg").write_bytes(b"new")
    folder = Path(storage(tmp_path, data_url="obs://bucket/flowers").data_folder())
    assert len(bucket.calls) == 2
    assert names(folder) - {RECORD} == names(bucket.root / "bucket" / "flowers")  # and nothing of the digits


def test_files_of_others_are_not_mixed_with_the_data(tmp_path: Path, bucket: FakeFile) -> None:
    (tmp_path / "cache" / "data" / "theirs").mkdir(parents=True)
    with pytest.raises(UserError, match="cache_dir: .*data holds files that were not copied by this program"):
        storage(tmp_path).data_folder()
    assert (tmp_path / "cache" / "data" / "theirs").exists()


def test_an_archive_is_copied_and_unpacked(tmp_path: Path, bucket: FakeFile) -> None:
    shutil.make_archive(str(bucket.root / "bucket" / "set"), "zip", bucket.root / "bucket" / "digits")
    listed = json.dumps([{"dataset_url": "obs://bucket/set.zip", "dataset_name": "set.zip"}])
    folder = Path(storage(tmp_path, (f"--multi_data_url={listed}",)).data_folder())
    assert names(folder) == names(bucket.root / "bucket" / "digits")
    assert bucket.calls[0][0] == "copy"  # copy_parallel takes only folders


def test_data_on_this_machine_is_used_in_place(tmp_path: Path, bucket: FakeFile) -> None:
    mounted = tmp_path / "mounted"
    shutil.copytree(bucket.root / "bucket" / "digits", mounted)
    assert storage(tmp_path, data_url=str(mounted)).data_folder() == str(mounted)
    assert bucket.calls == []


def test_a_copy_that_fails_at_first_is_repeated(tmp_path: Path, bucket: FakeFile, caplog: Any) -> None:
    bucket.failures = [lambda: (_ for _ in ()).throw(OSError("connection reset"))] * 2
    storage(tmp_path).data_folder()
    assert len(bucket.calls) == 3
    assert "attempt 2 failed (moxing: obs://bucket/digits: connection reset)" in caplog.text


def test_a_copy_that_never_works_is_one_clear_error(tmp_path: Path, bucket: FakeFile) -> None:
    with pytest.raises(UserError, match="moxing: obs://bucket/gone: .*No such directory"):
        storage(tmp_path, data_url="obs://bucket/gone").data_folder()
    assert not json.loads((tmp_path / "cache" / "data" / RECORD).read_text())["complete"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda place: (place / "val" / "cat" / "1.jpg").unlink(), "1 files of obs://bucket/digits did not arrive"),
        (lambda place: (place / "val" / "cat" / "1.jpg").write_bytes(b"part"), "has 780 bytes, of which 664 arrived"),
    ],
)
def test_a_copy_that_returns_after_a_part_is_noticed(
    tmp_path: Path, bucket: FakeFile, spoil: Any, words: str, caplog: Any
) -> None:
    bucket.spoil = [spoil]
    storage(tmp_path).data_folder()  # the second attempt is whole
    assert words in caplog.text
    bucket.spoil = [spoil] * 9
    with pytest.raises(UserError, match=words):
        storage(tmp_path / "other").data_folder()


def test_a_killed_copy_is_not_taken_for_complete(tmp_path: Path, bucket: FakeFile) -> None:
    bucket.failures = [lambda: (_ for _ in ()).throw(KeyboardInterrupt())]
    with pytest.raises(KeyboardInterrupt):
        storage(tmp_path).data_folder()
    (tmp_path / "cache" / "data" / "train").mkdir(parents=True, exist_ok=True)
    folder = Path(storage(tmp_path).data_folder())
    assert names(folder) - {RECORD} == names(bucket.root / "bucket" / "digits") and len(bucket.calls) == 2


def test_a_server_with_its_data_waits_for_one_without(tmp_path: Path, bucket: FakeFile, run_ranks: Callable) -> None:
    network = threading.Event()
    bucket.failures = [lambda: network.wait(60)]  # the first copy is slow
    both = [server(tmp_path, rank) for rank in range(2)]
    threading.Timer(1.0, network.set).start()
    found = run_ranks(*(place.data_folder for place in both))
    assert found == [str(tmp_path / f"server{rank}" / "cache" / "data") for rank in range(2)]


def test_a_failed_copy_ends_the_wait_of_a_server_that_still_copies(
    tmp_path: Path, bucket: FakeFile, run_ranks: Callable
) -> None:
    network = threading.Event()
    fails, slow = server(tmp_path, 0, data_url="obs://bucket/gone"), server(tmp_path, 1)
    real = bucket.copy_parallel

    def copy_parallel(url: str, *arguments: Any, **options: Any) -> None:
        if url.endswith("digits"):
            network.wait(60)  # longer than this test takes
        real(url, *arguments, **options)

    bucket.copy_parallel = copy_parallel
    failure, elsewhere = run_ranks(fails.data_folder, slow.data_folder)
    network.set()
    assert "obs://bucket/gone" in str(failure)
    assert str(elsewhere).startswith("data: rank 0 failed: moxing: obs://bucket/gone: ")
