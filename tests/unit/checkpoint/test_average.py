"""The mean of checkpoints: NumPy's, in float64, of one network only; through the script and back into a network."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from focal.checkpoint.average import average_checkpoints
from focal.checkpoint.files import CheckpointError, read_checkpoint, write_checkpoint
from focal.checkpoint.weights import read_weights
from focal.config import ConfigError, to_flat_dict
from scripts.average_checkpoints import main

INDICES = "layers.0.blocks.0.attn.topk_cloest_indice_0"


@pytest.fixture
def write(make_config, tmp_path):
    """Writes a checkpoint of a training with random weights; returns its path."""

    def write(number, names=("a", "b"), top1=0.0, tensors=None, **settings):
        rng = np.random.default_rng(number)
        weights = {"head.weight": rng.standard_normal((2, 3)).astype(np.float32), INDICES: np.arange(4, dtype=np.int32)}
        weights["ema.head.weight"] = weights["head.weight"] + np.float32(100)
        weights["moment1.head.weight"] = np.full((2, 3), np.nan, np.float32)  # neither this nor counters are averaged
        weights["optimizer.step"] = np.array(number, np.int32)
        accuracy = {"top1": top1, "ema_top1": -top1}
        meta = {"config": to_flat_dict(make_config(**settings)), "class_names": list(names), "accuracy": accuracy}
        path = tmp_path / f"{number}.ckpt"
        write_checkpoint(path, {**weights, **(tensors or {})}, meta)
        return path

    return write


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["average_checkpoints.py", *map(str, arguments)])
    return main()


@pytest.mark.parametrize("use_ema", (False, True))
def test_the_script_writes_the_mean_that_numpy_finds_and_it_is_read_like_any_checkpoint(
    write, tmp_path, monkeypatch, capsys, use_ema
):
    files, target = [write(number) for number in range(3)], tmp_path / "new" / "mean.ckpt"
    assert run(monkeypatch, *files, "--to", target, "--use_ema", use_ema) == 0
    assert "3 checkpoints" in capsys.readouterr().out
    expected = np.mean([read_weights(str(file), use_ema)["head.weight"].astype(np.float64) for file in files], 0)
    weights = read_weights(str(target))
    assert set(weights) == {"head.weight", INDICES}
    np.testing.assert_array_equal(weights["head.weight"], expected.astype(np.float32))
    np.testing.assert_array_equal(weights[INDICES], np.arange(4))
    meta = read_checkpoint(target).meta
    assert meta["class_names"] == ["a", "b"] and meta["config"]["arch"] == "focalv2_nano"
    assert meta["averaged"] == ["0.ckpt", "1.ckpt", "2.ckpt"] and meta["averaged_ema"] == use_ema


def test_sums_are_float64(write):
    """In float32, 1e8 + 1 - 1e8 is 0."""
    values = (1e8, 1.0, -1e8)
    files = [
        write(number, tensors={"head.weight": np.full((2, 3), value, np.float32)})
        for number, value in enumerate(values)
    ]
    assert (average_checkpoints(files)[0]["head.weight"] == np.float32(1 / 3)).all()


@pytest.mark.parametrize("count", (-1, 0, 1, 3))
def test_best_of_fewer_than_two_or_more_than_there_are_is_refused(write, tmp_path, monkeypatch, count):
    files = [write(number) for number in range(2)]
    with pytest.raises(ConfigError, match=f"^best: {count} of 2 files; give 2 to 2$"):
        run(monkeypatch, *files, "--to", tmp_path / "x.ckpt", "--best", count)
    with pytest.raises(ConfigError, match=f"^best: {count} of 1 files; a mean needs two or more"):
        run(monkeypatch, files[0], "--to", tmp_path / "x.ckpt", "--best", count)


def test_best_takes_those_of_highest_top1(write, tmp_path, monkeypatch, capsys):
    files = [write(number, top1=top1) for number, top1 in enumerate((70.0, 90.0, 80.0))]
    for use_ema, expected in ((False, [1, 2]), (True, [0, 2])):
        target = tmp_path / f"{use_ema}.ckpt"
        run(monkeypatch, *files, "--to", target, "--use_ema", use_ema, "--best", 2)
        assert read_checkpoint(target).meta["averaged"] == [f"{number}.ckpt" for number in expected]
    capsys.readouterr()
    plain = tmp_path / "plain.ckpt"
    write_checkpoint(plain, {"head.weight": np.zeros((2, 3), np.float32)}, None)
    with pytest.raises(CheckpointError, match="best: .*plain.ckpt does not say its top1"):
        run(monkeypatch, *files, plain, "--to", tmp_path / "x.ckpt", "--best", 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window_size": 14}, "1.ckpt is of another network than .*0.ckpt: window_size 14, not 7"),
        ({"image_mean": [0.5, 0.5, 0.5]}, "image_mean"),
        ({"names": ("b", "a")}, "class names in .*1.ckpt differ from those in .*0.ckpt: the same 2 names in another"),
        (
            {"tensors": {"head.weight": np.zeros((4, 3), np.float32)}},
            r"head.weight is \(4, 3\) in .*1.ckpt, but \(2, 3\)",
        ),
        ({"tensors": {INDICES: np.ones(4, np.int32)}}, "indice_0, which is not averaged, differs"),
        ({"tensors": {"norm.bias": np.ones(4, np.float32)}}, "only one of them has norm.bias"),
    ],
)
def test_what_is_not_the_same_network_is_refused(write, changes, message):
    with pytest.raises(ConfigError, match=message):
        average_checkpoints([write(0), write(1, **changes)])


def test_settings_of_training_may_differ(write):
    average_checkpoints([write(0), write(1, drop_path_rate=0.3, recompute=True, base_lr=1e-3)])


def test_too_few_files_and_targets_that_exist_are_refused(write, tmp_path, monkeypatch):
    file = write(0)
    with pytest.raises(ConfigError, match="files: 1 given"):
        run(monkeypatch, file, file, "--to", tmp_path / "mean.ckpt")
    assert not (tmp_path / "mean.ckpt").exists()
    with pytest.raises(ConfigError, match="to: .*0.ckpt exists"):
        run(monkeypatch, file, file, "--to", file)
    with pytest.raises(ConfigError, match=r"to: .*mean.pth must end in .ckpt"):
        run(monkeypatch, file, file, "--to", tmp_path / "mean.pth")
