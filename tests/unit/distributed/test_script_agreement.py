"""What train.py and eval.py give the comparison of ranks and the step. Nothing is compiled."""

from __future__ import annotations

import types
from pathlib import Path

import pytest

import eval as eval_script
import focal.data
import focal.trainers.setup
import train as train_script
from focal.checkpoint.files import write_checkpoint
from focal.cloud.local import Storage
from focal.distributed.device import Device
from focal.errors import UserError


class Reached(Exception):
    """The script has come to the place that a test looks at."""


@pytest.fixture
def make_job(make_config, tmp_path: Path):
    for name in ("train/ant/1.png", "train/ant/2.png", "train/bee/1.png", "val/ant/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")

    def make(**settings: object) -> types.SimpleNamespace:
        config = make_config(num_classes=2, data_url=str(tmp_path), **settings)
        storage = Storage(config, Device(), str(tmp_path / "out"))
        return types.SimpleNamespace(config=config, device=Device(), storage=storage)

    return make


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch):
    """Runs a script up to its comparison of ranks; returns the entries beyond settings, data and code."""

    def run(work, job: types.SimpleNamespace) -> list[str]:
        found: list[str] = []

        def note(config, device, layout, others) -> None:
            found.extend(f"{other.name}: {other.entry(index)}" for other in others for index in range(other.length))
            raise Reached

        monkeypatch.setattr(focal.data, "check_ranks_agree", note)
        with pytest.raises(Reached):
            work(job)
        return found

    return run


def test_train_compares_the_teachers_of_the_servers(make_job, compared, tmp_path: Path) -> None:
    (tmp_path / "teacher.ckpt").write_bytes(b"123456789")
    job = make_job(distillation="soft", teacher=str(tmp_path / "teacher.ckpt"))
    assert compared(train_script.train, job) == ["teacher file: a file with CRC-32 cbf43926"]
    assert compared(train_script.train, make_job()) == ["teacher file: no teacher"]


def test_eval_compares_the_weights_and_who_gathers_predictions(make_job, compared, tmp_path: Path) -> None:
    path = str(tmp_path / "x.ckpt")
    write_checkpoint(Path(path), {}, {})
    plain = compared(eval_script.evaluate_checkpoint, make_job(pretrained=path))
    assert plain[:2] == ["flags: use_ema: False", "flags: predictions given: False"]
    assert plain[2].startswith("pretrained file: a file with CRC-32 ") and len(plain) == 3
    other = compared(eval_script.evaluate_checkpoint, make_job(pretrained=path, predictions="p.npz"))
    assert other == [plain[0], "flags: predictions given: True", plain[2]]
    assert "use_ema: True" in str(eval_script.compared(make_job(pretrained=path, use_ema=True).config)[0].entry(0))


def test_the_teacher_is_checked_against_the_classes_of_the_data(make_job, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []

    def build_train_step(config, network, batches_per_epoch, device, class_names) -> None:
        given.append(class_names)
        raise Reached

    monkeypatch.setattr(focal.trainers.setup, "build_network", lambda config, class_names: given.append(class_names))
    monkeypatch.setattr(focal.trainers.setup, "build_train_step", build_train_step)
    with pytest.raises(Reached):
        train_script.train(make_job(batch_size=1, mix_up=0, cutmix=0))
    assert given == [("ant", "bee"), ("ant", "bee")]


def test_a_missing_teacher_is_noticed_at_the_start(make_config) -> None:
    with pytest.raises(UserError, match=r"^teacher: no/such.ckpt does not exist"):
        train_script.check(make_config(distillation="soft", teacher="no/such.ckpt"))


def test_a_cloud_job_brings_the_teacher_and_misses_it_before_the_data(make_job, compared, tmp_path: Path) -> None:
    job = make_job(distillation="soft", teacher="obs://bucket/teacher.ckpt", run_openi=True)
    train_script.check(job.config)  # where nothing has been brought yet
    job.storage.teacher = lambda: str(tmp_path / "teacher.ckpt")
    job.storage.data_folder = lambda: pytest.fail("the data is copied, which can take hours")
    with pytest.raises(UserError, match=r"^teacher: .*teacher.ckpt does not exist"):
        train_script.train(job)
    (tmp_path / "teacher.ckpt").write_bytes(b"123456789")
    job.storage.data_folder = lambda: str(tmp_path)
    assert compared(train_script.train, job) == ["teacher file: a file with CRC-32 cbf43926"]
