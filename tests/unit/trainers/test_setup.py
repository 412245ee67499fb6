"""Resuming: which checkpoint, and what becomes of other results in the folder."""

from __future__ import annotations

import errno
import os

import mindspore as ms
import pytest

from focal.checkpoint.files import CheckpointError, read_checkpoint, write_checkpoint
from focal.checkpoint.resume import Progress, make_meta
from focal.checkpoint.train_state import collect_tensors
from focal.cloud.local import Storage
from focal.config import ConfigError
from focal.distributed.device import Device
from focal.errors import UserError
from focal.trainers.setup import open_outputs, resume_state


def write(path, config, step, update):
    progress = Progress(epoch=1, step=update, training=77)
    write_checkpoint(path, collect_tensors(step.state(), 1), make_meta(config, progress, 1, 10))


def test_results_of_another_training_are_set_aside_once_the_checkpoint_is_accepted(make_config, make_step, tmp_path):
    config = make_config()
    step = make_step(config)
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere" / "last.ckpt"
    write(out / "checkpoints" / "last.ckpt", config, step, 250)
    write(elsewhere, config, step, 10)

    other = make_config(resume=str(elsewhere), base_lr=1e-3)
    with pytest.raises(ConfigError, match="base_lr"):
        resume_state(other, make_step(other), 10, Device(), str(out))
    assert [path.name for path in out.iterdir()] == ["checkpoints"]  # refused: nothing has moved

    own = make_config(resume=str(out / "checkpoints" / "last.ckpt"))
    assert resume_state(own, step, 10, Device(), str(out)).step == 250
    assert resume_state(make_config(resume="auto"), step, 10, Device(), str(out)).step == 250
    assert [path.name for path in out.iterdir()] == ["checkpoints"]

    resumed = resume_state(make_config(resume=str(elsewhere)), step, 10, Device(), str(out))
    assert (resumed.step, resumed.training) == (10, 77)
    assert sorted(path.name for path in out.iterdir()) == ["checkpoints", "earlier-1"]
    # Killed before it saves anything itself, the training is continued from where it was.
    assert resume_state(make_config(resume="auto"), step, 10, Device(), str(out)).step == 10


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("write failed")])
def test_a_training_does_not_start_from_a_checkpoint_that_resume_auto_would_not_find(
    make_config, make_step, tmp_path, monkeypatch, error
):
    """The disk is full. A training that is killed before its first save would otherwise start from the beginning."""
    config = make_config()
    step, out, elsewhere = make_step(config), tmp_path / "out", tmp_path / "elsewhere" / "last.ckpt"
    write(out / "checkpoints" / "last.ckpt", config, step, 250)
    write(elsewhere, config, step, 10)

    def full(*arguments, **settings):
        raise error

    with monkeypatch.context() as patch, pytest.raises(UserError, match="train_url: .*elsewhere/last.ckpt.*make room"):
        patch.setattr(ms, "save_checkpoint", full)
        resume_state(make_config(resume=str(elsewhere)), step, 10, Device(), str(out))
    assert os.listdir(out) == ["checkpoints"], "nothing has moved and nothing lies about"
    assert resume_state(make_config(resume="auto"), step, 10, Device(), str(out)).step == 250
    assert resume_state(make_config(resume=str(elsewhere)), step, 10, Device(), str(tmp_path / "new")).step == 10
    assert os.listdir(tmp_path / "new") == ["checkpoints"]


def test_every_new_training_has_a_number_of_its_own(make_config, make_step, tmp_path):
    config = make_config()
    numbers = {resume_state(config, make_step(config), 10, Device(), str(tmp_path)).training for _ in range(3)}
    assert len(numbers) == 3 and all(0 < number < 2**24 for number in numbers)


def test_going_back_is_not_undone_by_resume_auto(make_config, make_step, tmp_path):
    """last.1.ckpt is chosen, the job is killed before its first save, and a scheduler gives `--resume auto`."""
    config = make_config()
    step, checkpoints = make_step(config), tmp_path / "checkpoints"
    for name, done in (("last.ckpt", 30), ("last.1.ckpt", 20), ("last.2.ckpt", 10)):
        write(checkpoints / name, config, step, done)
    (tmp_path / "metrics.jsonl").write_text("records\n")

    dry = make_config(resume=str(checkpoints / "last.1.ckpt"), dry_run=True)
    assert resume_state(dry, step, 10, Device(), str(tmp_path)).step == 20
    assert sorted(os.listdir(checkpoints)) == ["last.1.ckpt", "last.2.ckpt", "last.ckpt"]

    assert resume_state(make_config(resume=dry.run.resume), step, 10, Device(), str(tmp_path)).step == 20
    assert resume_state(make_config(resume="auto"), step, 10, Device(), str(tmp_path)).step == 20
    assert sorted(os.listdir(checkpoints)) == ["last.1.ckpt", "last.2.ckpt"]
    left = tmp_path / "earlier-1"
    assert read_checkpoint(left / "checkpoints" / "last.ckpt").meta["progress"]["step"] == 30
    assert (left / "metrics.jsonl").read_text() == "records\n" == (tmp_path / "metrics.jsonl").read_text()
    assert sorted(os.listdir(tmp_path)) == ["checkpoints", "earlier-1", "metrics.jsonl"], "nothing is set aside twice"


ODD = {
    "unknown key": ({"progress": {"epoch": 1, "mood": 3}}, "progress.mood"),
    "negative epoch": ({"progress": {"epoch": -1}}, "progress.epoch is -1"),
    "text for a number": ({"progress": {"step": "7"}}, "progress.step is '7'"),
    "nan": ({"progress": {"best_top1": float("nan")}}, "progress.best_top1 is nan"),
    "no progress": ({"progress": None}, "progress or config is missing"),
    "no config": ({"config": None}, "progress or config is missing"),
    "config without batch_size": ({"config": {"accumulation_step": 1}}, "config.batch_size is None"),
    "no devices": ({"world_size": 0}, "world_size is 0"),
    "no steps": ({"steps_per_epoch": 0}, "steps_per_epoch is 0"),
    "class names": ({"class_names": [1, 2]}, r"class_names is \[1, 2\]"),
}


@pytest.mark.parametrize("change, named", ODD.values(), ids=ODD)
def test_odd_metadata_is_one_error_for_a_named_file_and_skipped_by_auto(
    make_config, make_step, tmp_path, caplog, change, named
):
    config = make_config()
    step, checkpoints = make_step(config), tmp_path / "checkpoints"
    write(checkpoints / "last.1.ckpt", config, step, 20)
    meta = {**make_meta(config, Progress(epoch=1, step=30), 1, 10), **change}
    write_checkpoint(checkpoints / "last.ckpt", collect_tensors(step.state(), 1), meta)
    with pytest.raises(CheckpointError, match=named):
        chosen = make_config(resume=str(checkpoints / "last.ckpt"))
        resume_state(chosen, step, 10, Device(), str(tmp_path))
    assert resume_state(make_config(resume="auto"), step, 10, Device(), str(tmp_path)).step == 20
    assert "trying the one before it" in caplog.text
    assert os.listdir(tmp_path / "earlier-1" / "checkpoints") == ["last.ckpt"], "the file that auto skipped"


@pytest.mark.parametrize(
    "keys, named", [({"num_classes": 3}, "num_classes: 4 -> 3"), ({"embed_dim": 64}, "embed_dim: 32 -> 64")]
)
def test_a_checkpoint_of_another_network_is_refused_and_nothing_moves(make_config, make_step, tmp_path, keys, named):
    config = make_config()
    write(tmp_path / "checkpoints" / "last.ckpt", config, make_step(config), 20)
    other = make_config(resume="auto", **keys)
    with pytest.raises(ConfigError, match=named):
        resume_state(other, make_step(other), 10, Device(), str(tmp_path))
    assert os.listdir(tmp_path) == ["checkpoints"] and os.listdir(tmp_path / "checkpoints") == ["last.ckpt"]


def open_in(folder, make_config):
    config = make_config(train_url=str(folder))
    return open_outputs(config, Device(), Progress(), 10, Storage(config, Device(), str(folder)))


def test_leftovers_of_killed_writers_are_removed_at_the_start(make_config, tmp_path):
    places = [tmp_path / ".partial.metrics.jsonl", *(tmp_path / name for name in ("checkpoints/.partial.last.ckpt",
              "checkpoints/.partial.last.tmp", "best/.partial.best.3.ckpt"))]  # fmt: skip
    for path in places:
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    (tmp_path / "best" / "best.ckpt").write_text("whole")
    open_in(tmp_path, make_config).metrics.close()
    assert not any(path.exists() for path in places) and (tmp_path / "best" / "best.ckpt").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT])
def test_a_folder_that_cannot_be_written_is_one_error_at_the_start(make_config, tmp_path, monkeypatch, code):
    """No free inode is ENOSPC, too."""

    def refuse(*arguments, **settings):
        raise OSError(code, os.strerror(code), str(tmp_path / "x"))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match=f"train_url: .* cannot be written .{os.strerror(code)}"):
        open_in(tmp_path, make_config)
