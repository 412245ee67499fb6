"""Class names in checkpoints, and what happens if those of the data are others."""

from __future__ import annotations

import importlib.util
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

from focal.checkpoint.class_names import check_class_names, class_name_difference, class_names_of
from focal.checkpoint.files import read_checkpoint, write_checkpoint
from focal.checkpoint.resume import Progress, make_meta
from focal.checkpoint.train_state import collect_tensors
from focal.config import ConfigError
from focal.data import TrainData, check_data
from focal.distributed.device import Device
from focal.models import create_model
from focal.trainers.setup import build_network, resume_state
from tests.unit.conftest import write_images

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    "saved, present, difference",
    [
        (("a", "b"), ("a", "b"), None),
        (None, ("a", "b"), None),
        (("a", "b"), None, None),
        (("a", "b", "c"), ("a", "d", "c"), "1 of 3 names (label 1: 'b' -> 'd')"),
        (("a", "b", "c"), ("a", "c", "b"),
         "the same 3 names in another order (label 1: 'b' -> 'c'; label 2: 'c' -> 'b')"),
        (("a", "b"), ("a",), "1 of 2 names (label 1: 'b' -> none)"),
        (tuple("abcd"), tuple("bcde"),
         "4 of 4 names (label 0: 'a' -> 'b'; label 1: 'b' -> 'c'; label 2: 'c' -> 'd'; ...)"),
    ],
)  # fmt: skip
def test_a_difference_names_the_labels_that_changed(saved, present, difference):
    assert class_name_difference(saved, present) == difference


def test_a_permutation_is_refused_unless_it_is_allowed(caplog):
    with pytest.raises(ConfigError, match="^resume: .*of x.ckpt: the same 2 names in another order.*allow_config_chan"):
        check_class_names("resume", "x.ckpt", ("a", "b"), ("b", "a"), allowed=False)
    check_class_names("resume", "x.ckpt", ("a", "b"), ("b", "a"), allowed=True)
    assert "the same 2 names in another order" in caplog.text


def test_names_survive_a_checkpoint_and_older_ones_have_none(make_config, tmp_path):
    names = ("tench", "große Katze", "bad\udcff")  # the last one as Python decodes a name that is not UTF-8
    write_checkpoint(tmp_path / "a.ckpt", {}, make_meta(make_config(), Progress(), 1, 10, names))
    assert class_names_of(read_checkpoint(tmp_path / "a.ckpt").meta) == names
    assert class_names_of(make_meta(make_config(), Progress(), 1, 10)) is None
    assert class_names_of({"progress": {}}) is None and class_names_of(None) is None


def test_a_training_with_renamed_folders_is_not_resumed(make_config, make_step, image_folder, tmp_path, caplog):
    config = make_config(num_classes=3)
    data = TrainData(config, check_data(config, str(image_folder)))
    step, path = make_step(config), tmp_path / "last.ckpt"
    meta = make_meta(config, Progress(step=7), 1, 10, data.known_class_names)
    write_checkpoint(path, collect_tensors(step.state(), 1), meta)

    def resume(names, **keys):
        return resume_state(
            make_config(num_classes=3, resume=str(path), **keys), step, 10, Device(), str(tmp_path), names
        )

    assert resume(("a", "b", "c")).step == resume(None).step == 7
    with pytest.raises(ConfigError, match="label 2: 'c' -> 'z'"):
        resume(("a", "b", "z"))
    assert resume(("a", "b", "z"), allow_config_change=True).step == 7
    assert "label 2: 'c' -> 'z'" in caplog.text


def script(name):
    """An entry script as a module."""
    spec = importlib.util.spec_from_file_location(name.replace(".", "_"), ROOT / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("allowed", [False, True])
def test_eval_refuses_renamed_folders(make_config, tmp_path, allowed, caplog):
    """Class `a` has become `z`: as many classes as before, but each label now means another one."""
    module = script("eval.py")
    write_images(tmp_path / "val", {"b": 1, "c": 1, "z": 1})
    path = tmp_path / "best.ckpt"
    config = make_config(num_classes=3, pad_windows=True, pretrained=str(path), allow_config_change=allowed)
    write_checkpoint(path, {}, make_meta(config, Progress(), 1, 10, ("a", "b", "c")))
    storage = SimpleNamespace(data_folder=lambda: str(tmp_path))
    message = "missing: patch_embed" if allowed else "pretrained: .*3 of 3 names .label 0: 'a' -> 'b'"
    with pytest.raises(ValueError, match=message):  # if allowed, the next check finds the checkpoint to be empty
        module.evaluate_checkpoint(SimpleNamespace(config=config, device=Device(), storage=storage))
    assert ("label 0: 'a' -> 'b'" in caplog.text) == allowed


@pytest.mark.parametrize(
    "saved, allowed, keeps_head",
    [(("a", "b", "c"), False, True), (("a", "c", "b"), False, False), (("x", "y", "z"), False, False),
     (("x", "y", "z"), True, True), (None, False, True)],
)  # fmt: skip
def test_fine_tuning_on_other_classes_starts_with_a_new_head(saved, allowed, keeps_head, make_config, tmp_path, caplog):
    """As many classes as before, but others: the old head would pass unnoticed."""
    path = tmp_path / "best.ckpt"
    config = make_config(num_classes=3, pad_windows=True, seed=3)
    trained = {p.name: p.asnumpy() for p in create_model(config).get_parameters()}
    write_checkpoint(path, trained, make_meta(config, Progress(), 1, 10, saved))
    config = make_config(
        num_classes=3, pad_windows=True, seed=4, pretrained=str(path), allow_config_change=allowed, drop_path_rate=0.0
    )
    found = {p.name: p.asnumpy() for p in build_network(config, ("a", "b", "c")).get_parameters()}
    fresh = {p.name: p.asnumpy() for p in create_model(config).get_parameters()}
    moved = "layers.0.blocks.0.mlp.fc1.weight"
    assert (found[moved] == trained[moved]).all() and (found[moved] != fresh[moved]).any()
    assert (found["head.weight"] == (trained if keeps_head else fresh)["head.weight"]).all()
    lines = [record.message for record in caplog.records if "its classes are not those of the data" in record.message]
    assert len(lines) == (not keeps_head)
    assert all(
        "label " in line and "head is re-initialised" in line and "allow_config_change" in line for line in lines
    )


def test_train_compares_the_names_of_its_data(make_config, image_folder, monkeypatch):
    """train.py hands them to the function that loads the pretrained weights."""
    module = script("train.py")
    given = []

    def build(config, class_names=None):
        given.append(class_names)
        raise InterruptedError

    monkeypatch.setattr("focal.trainers.setup.build_network", build)
    storage = SimpleNamespace(data_folder=lambda: str(image_folder), with_teacher=lambda config: config)
    with pytest.raises(InterruptedError):
        module.train(SimpleNamespace(config=make_config(num_classes=3), device=Device(), storage=storage))
    assert given == [("a", "b", "c")]


def test_labels_without_names_are_not_taken_for_names(make_config, tmp_path, caplog):
    """MindRecord files without classes.json say nothing about names, so nothing can differ."""
    from focal.data.folder import ImageFolder
    from focal.data.mindrecord import write_mindrecord

    write_images(tmp_path / "images", {"a": 1, "b": 1, "c": 1})
    source = ImageFolder(str(tmp_path / "images"), ("a", "b", "c"))
    caplog.set_level(logging.ERROR)
    write_mindrecord(source, tmp_path, "val", 1, None, 1)
    config = make_config(num_classes=3)
    assert check_data(config, str(tmp_path), splits=("val",)).known_class_names is None
    (tmp_path / "classes.json").write_text(json.dumps(["x", "y", "z"]))
    assert check_data(config, str(tmp_path), splits=("val",)).known_class_names == ("x", "y", "z")
