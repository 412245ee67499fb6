"""ModelArts storage against a stand-in moxing: what is copied and checked, and what happens when copying goes wrong."""

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

from focal.cloud.moxing import RECORD, ResultSender, Source, import_moxing, parse_sources
from focal.cloud.storage import open_storage
from focal.config import load_config
from focal.distributed.device import Device
from focal.errors import UserError
from focal.files import LOCK_FILE
from tests.unit.cloud.fake_moxing import FakeFile, make_moxing


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeFile:
    """An object store with two datasets and an archive, behind the stand-in."""
    for name in ("DATA_DOWNLOAD_METHOD", "LOCAL_DATASET_PATH", "LOCAL_TENSORBOARD_PATH"):
        monkeypatch.delenv(name, raising=False)
    module = make_moxing(tmp_path / "store")
    monkeypatch.setitem(sys.modules, "moxing", module)
    for dataset in ("digits", "flowers"):
        for split in ("train", "val"):
            for index in range(3):
                image = tmp_path / "store" / "bucket" / dataset / split / "cat" / f"{index}.jpg"
                image.parent.mkdir(parents=True, exist_ok=True)
                image.write_bytes(f"{dataset} {split} {index}".encode() * 10)
    return module.file


def storage(tmp_path: Path, unknown: tuple = (), device: Device = Device(), **keys: Any) -> Any:  # noqa: B008
    keys = {"data_url": "obs://bucket/digits", "train_url": "obs://bucket/out/job1", **keys}
    config = load_config({"device_target": "CPU", "run_openi": True, "cache_dir": str(tmp_path / "cache"), **keys})
    return open_storage(config, device, unknown)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


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


def server(tmp_path: Path, rank: int, **keys: Any) -> Any:
    return storage(tmp_path / f"server{rank}", device=Device(rank, 2, local_rank=0, local_size=1), **keys)


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


def test_only_the_server_of_rank_0_brings_earlier_results(
    tmp_path: Path, bucket: FakeFile, run_ranks: Callable
) -> None:
    """Another would send them back at the end, over what server 0 has sent since."""
    sent = bucket.root / "bucket" / "out" / "job1" / "checkpoints" / "last.ckpt"
    sent.parent.mkdir(parents=True)
    sent.write_bytes(b"epoch 10")
    both = [server(tmp_path, rank, resume="auto") for rank in range(2)]
    assert run_ranks(*(place.resume for place in both)) == ["auto", "auto"]
    here = Path(both[0].output_folder) / "checkpoints" / "last.ckpt"
    assert here.read_bytes() == b"epoch 10" and not (Path(both[1].output_folder) / "checkpoints").exists()
    here.write_bytes(b"epoch 300")
    (Path(both[1].output_folder) / "log").mkdir(parents=True)
    (Path(both[1].output_folder) / "log" / "rank_1.log").write_text("x")
    for place in both:
        place.close()
    assert sent.read_bytes() == b"epoch 300" and (sent.parents[1] / "log" / "rank_1.log").exists()


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


def test_weights_come_from_the_flag_or_from_pretrained(tmp_path: Path, bucket: FakeFile) -> None:
    weights = bucket.root / "bucket" / "models" / "a.ckpt"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    here = str(tmp_path / "cache" / "checkpoints" / "pretrained" / "a.ckpt")
    assert storage(tmp_path, ("--ckpt_url=obs://bucket/models/a.ckpt",)).pretrained() == here
    listed = json.dumps([{"model_url": "obs://bucket/models/a.ckpt", "model_name": "a.ckpt"}])
    assert storage(tmp_path, ("--pretrain_url", listed)).pretrained() == here
    assert storage(tmp_path, pretrained="obs://bucket/models/a.ckpt").pretrained() == here
    assert Path(here).read_bytes() == b"weights"
    assert storage(tmp_path, ("--pretrain_url=[]",)).pretrained() is None
    assert storage(tmp_path, pretrained="./mine.ckpt").pretrained() == "./mine.ckpt"


def test_checkpoints_of_one_name_are_kept_apart(tmp_path: Path, bucket: FakeFile) -> None:
    urls = {key: f"obs://bucket/of_{key}/best.ckpt" for key in ("pretrained", "teacher", "resume")}
    for key in urls:
        (bucket.root / "bucket" / f"of_{key}").mkdir(parents=True)
        (bucket.root / "bucket" / f"of_{key}" / "best.ckpt").write_text(key)
    place = storage(tmp_path, distillation="soft", **urls)
    run = place.with_teacher(place.local_config()).run
    for key in urls:
        path = Path(getattr(run, key))
        assert path.name == "best.ckpt" and path.read_text() == key and tmp_path in path.parents


def test_a_teacher_that_does_not_arrive_is_one_clear_error(tmp_path: Path, bucket: FakeFile) -> None:
    place = storage(tmp_path, distillation="soft", teacher="obs://bucket/gone/best.ckpt")
    with pytest.raises(UserError, match="moxing: obs://bucket/gone/best.ckpt: .*No such file"):
        place.teacher()
    assert len(bucket.calls) == 5


def test_resume_auto_brings_the_checkpoints_of_the_job_before(tmp_path: Path, bucket: FakeFile) -> None:
    sent = bucket.root / "bucket" / "out" / "job1" / "checkpoints" / "last.ckpt"
    sent.parent.mkdir(parents=True)
    sent.write_bytes(b"state")
    (sent.parent.parent / "best").mkdir()
    (sent.parent.parent / "best" / "best.ckpt").write_bytes(b"best")
    for name in ("metrics.jsonl", "predictions.npz", "report.html"):
        (sent.parent.parent / name).write_text("{}\n")
    place = storage(tmp_path, resume="auto")
    assert place.resume() == "auto"
    # All that later results would replace at train_url has come too.
    come = {"checkpoints/last.ckpt", "best/best.ckpt", "metrics.jsonl", "predictions.npz"}
    assert names(Path(place.output_folder)) == come
    here = Path(place.output_folder) / "checkpoints" / "last.ckpt"
    assert here.read_bytes() == b"state"
    here.write_bytes(b"newer")
    assert storage(tmp_path, resume="auto").resume() == "auto"
    assert here.read_bytes() == b"newer"  # what lies here is newer than what was sent
    assert storage(tmp_path, resume="auto", train_url="obs://bucket/out/first").resume() == "auto"


def test_resume_auto_does_not_take_a_part_of_the_checkpoints_for_newer_ones(tmp_path: Path, bucket: FakeFile) -> None:
    sent = bucket.root / "bucket" / "out" / "job1" / "checkpoints"
    sent.mkdir(parents=True)
    for name in ("last.ckpt", "last.1.ckpt"):
        (sent / name).write_bytes(b"state")
    bucket.spoil = [lambda place: (place / "last.ckpt").unlink()] * 5
    place = storage(tmp_path, resume="auto")
    with pytest.raises(UserError, match=r"did not arrive, the first: last\.ckpt"):
        place.resume()
    again = storage(tmp_path, resume="auto")
    assert again.resume() == "auto"
    assert names(Path(again.output_folder) / "checkpoints") == {"last.ckpt", "last.1.ckpt"}


# ---- results


def test_results_are_sent_and_stay_here(tmp_path: Path, bucket: FakeFile) -> None:
    with storage(tmp_path) as place:
        output = Path(place.output_folder)
        assert output == tmp_path / "cache" / "output"
        (output / "checkpoints").mkdir(parents=True)
        (output / "checkpoints" / "last.ckpt").write_bytes(b"one")
        (output / "checkpoints" / ".partial.last.tmp").write_bytes(b"half")
        (output / "checkpoints" / ".partial.last.ckpt").write_bytes(b"being renamed")
        (output / LOCK_FILE).write_text("held here, and nowhere else")
        place.send_results()
        (output / "metrics.jsonl").write_text("{}\n")
    sent = bucket.root / "bucket" / "out" / "job1"
    assert names(sent) == {"checkpoints/last.ckpt", "metrics.jsonl"}
    assert (output / "checkpoints" / "last.ckpt").read_bytes() == b"one"


def test_results_are_sent_also_after_a_failure_of_training(tmp_path: Path, bucket: FakeFile) -> None:
    with pytest.raises(ZeroDivisionError), storage(tmp_path) as place:
        Path(place.output_folder).mkdir(parents=True)
        (Path(place.output_folder) / "log.txt").write_text("why")
        raise ZeroDivisionError
    assert (bucket.root / "bucket" / "out" / "job1" / "log.txt").read_text() == "why"


def test_results_that_cannot_be_sent_are_an_error_at_the_end(tmp_path: Path, bucket: FakeFile) -> None:
    place = storage(tmp_path)
    Path(place.output_folder).mkdir(parents=True)
    (Path(place.output_folder) / "a").write_text("x")
    bucket.failures = [lambda: (_ for _ in ()).throw(OSError("quota exceeded"))] * 99
    with pytest.raises(UserError, match="could not be sent .*quota exceeded.*they are in .*output"):
        place.close()
    assert (Path(place.output_folder) / "a").read_text() == "x"
    assert len(bucket.calls) == 5


def exits() -> None:
    """What a platform's program may do when it finds no credentials, say."""
    raise SystemExit(0)


@pytest.mark.parametrize("times", [2, 99])
def test_a_copy_that_exits_fails_as_any_other(tmp_path: Path, bucket: FakeFile, times: int, caplog: Any) -> None:
    """Results: sent by a later attempt, or an error at the end; data likewise."""
    for step in (lambda place: place.data_folder(), lambda place: place.close()):
        place = storage(tmp_path)
        Path(place.output_folder).mkdir(parents=True, exist_ok=True)
        (Path(place.output_folder) / "a").write_text("x")
        bucket.failures = [exits] * times
        if times == 2:
            step(place)
        else:
            with pytest.raises(UserError, match=r"moxing ended with sys\.exit\(0\)"):
                step(place)
        assert "moxing ended with sys.exit(0)); again in" in caplog.text
        caplog.clear()
    assert (bucket.root / "bucket" / "out" / "job1" / "a").exists() == (times == 2)


def test_a_last_upload_that_stalls_is_an_error_that_says_where_the_results_are(
    tmp_path: Path, bucket: FakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("focal.cloud.upload.LAST_ROUND", 0.1)
    network = threading.Event()
    bucket.failures = [lambda: network.wait(60)]
    place = storage(tmp_path)
    Path(place.output_folder).mkdir(parents=True)
    (Path(place.output_folder) / "a").write_text("x")
    with pytest.raises(UserError, match="could not be sent .*not finished after 0 s.*they are in .*output"):
        place.close()
    network.set()


def test_an_upload_that_is_interrupted_goes_on_with_what_has_not_arrived(tmp_path: Path, bucket: FakeFile) -> None:
    """The connection breaks after the first of three files, twice; each attempt sends what is not there whole."""
    folder = tmp_path / "out"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / name).write_text(name * 5)
    real = shutil.copyfile

    def breaks_after_one(source: Path, place: Path) -> None:
        real(source, place)
        raise OSError("connection reset")

    sender = ResultSender(folder, "obs://bucket/o")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.unit.cloud.fake_moxing.shutil.copyfile", breaks_after_one)
        for _ in range(2):
            with pytest.raises(UserError, match="connection reset"):
                sender.send()
    sender.send()
    assert {name: (bucket.root / "bucket" / "o" / name).read_text() for name in "abc"} == {
        "a": "aaaaa", "b": "bbbbb", "c": "ccccc"
    }  # fmt: skip


def test_a_failed_upload_does_not_hide_the_failure_of_training(tmp_path: Path, bucket: FakeFile, caplog: Any) -> None:
    bucket.failures = [lambda: (_ for _ in ()).throw(OSError("quota exceeded"))] * 99
    with pytest.raises(ZeroDivisionError), storage(tmp_path) as place:
        Path(place.output_folder).mkdir(parents=True)
        (Path(place.output_folder) / "a").write_text("x")
        raise ZeroDivisionError
    assert "quota exceeded" in caplog.text


def test_only_one_rank_of_a_machine_sends(tmp_path: Path, bucket: FakeFile) -> None:
    place = storage(tmp_path, device=Device(rank=1, world_size=2, local_rank=1, local_size=2))
    Path(place.output_folder).mkdir(parents=True)
    (Path(place.output_folder) / "a").write_text("x")
    place.send_results()
    place.close()
    assert bucket.calls == []


def test_a_slow_upload_does_not_hold_training_up(tmp_path: Path, bucket: FakeFile) -> None:
    network = threading.Event()
    bucket.failures = [lambda: network.wait(60)]
    place = storage(tmp_path)
    Path(place.output_folder).mkdir(parents=True)
    (Path(place.output_folder) / "a").write_text("x")
    place.send_results()
    place.send_results()
    assert not (bucket.root / "bucket" / "out").exists()  # we are back, and the sending still waits
    network.set()
    place.close()
    assert (bucket.root / "bucket" / "out" / "job1" / "a").exists()


def test_only_what_is_new_is_sent_in_threads(tmp_path: Path, bucket: FakeFile) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "a").write_text("1")
    sender = ResultSender(folder, "obs://bucket/o/")
    sender.send()
    sender.send()  # nothing new, nothing sent
    (folder / "b").write_text("2")
    sender.send()
    assert [call[3] for call in bucket.calls] == [["a"], ["b"]]
    assert [call[4] for call in bucket.calls] == [False, False]  # a running job must not be forked


def test_a_file_that_arrives_in_part_is_sent_again(tmp_path: Path, bucket: FakeFile) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "a").write_text("whole")
    (folder / "b").write_text("also")
    bucket.spoil = [lambda place: (place / "a").write_text("who")]
    sender = ResultSender(folder, "obs://bucket/o")
    with pytest.raises(UserError, match="1 files did not arrive whole, the first: obs://bucket/o/a"):
        sender.send()
    sender.send()
    assert [call[3] for call in bucket.calls] == [["a", "b"], ["a"]]
    assert (bucket.root / "bucket" / "o" / "a").read_text() == "whole"


def test_a_file_that_changes_while_it_is_sent_is_sent_again(tmp_path: Path, bucket: FakeFile) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "events").write_text("1")
    bucket.spoil = [lambda place: (folder / "events").write_text("1 and 2")]
    sender = ResultSender(folder, "obs://bucket/o")
    sender.send()
    sender.send()
    assert (bucket.root / "bucket" / "o" / "events").read_text() == "1 and 2"
