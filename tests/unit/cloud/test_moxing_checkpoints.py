"""Weights, teachers and earlier checkpoints that a job finds in ModelArts' storage, a stand-in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Callable

import pytest

from focal.errors import UserError
from tests.unit.cloud.fake_moxing import FakeFile
from tests.unit.cloud.moxing_job import names, server, storage


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
