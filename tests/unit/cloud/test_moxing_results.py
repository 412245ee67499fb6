"""Results on their way to ModelArts' storage, a stand-in: what is sent when, and what if sending goes wrong."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from focal.cloud.moxing import ResultSender
from focal.distributed.device import Device
from focal.errors import UserError
from focal.files import LOCK_FILE
from tests.unit.cloud.fake_moxing import FakeFile
from tests.unit.cloud.moxing_job import names, storage


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
