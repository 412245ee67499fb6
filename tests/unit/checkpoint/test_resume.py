"""State of a training into a checkpoint and back."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from mindspore import Tensor

from focal.checkpoint.files import read_checkpoint, write_checkpoint
from focal.checkpoint.resume import Progress, changed_settings, make_meta, restore
from focal.checkpoint.train_state import collect_tensors, weights_only
from focal.config import ConfigError


def train(step, batch, steps):
    return [[float(v.asnumpy()) for v in step(*(Tensor(array) for array in batch(t)))] for t in steps]


@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "momentum"])
def test_resumed_steps_are_equal_to_the_last_bit(make_config, make_step, batch, tmp_path, optimizer):
    config = make_config(optimizer=optimizer, scale_window=2, ema_warmup=True)
    whole = make_step(config)
    expected = train(whole, batch, range(9))
    first = make_step(config)
    train(first, batch, range(4))
    path = tmp_path / "a.ckpt"
    write_checkpoint(path, collect_tensors(first.state(), 1), make_meta(config, Progress(1, 3, 4, 55.5, 4), 1, 10))
    second = make_step(config, seed=99)  # other initial weights: all must come from the file
    progress = restore(read_checkpoint(path), second.state(), config, 1, 10)
    assert progress == Progress(1, 3, 4, 55.5, 4)
    assert train(second, batch, range(4, 9)) == expected[4:]
    ours, theirs = collect_tensors(second.state(), 1), collect_tensors(whole.state(), 1)
    assert ours.keys() == theirs.keys() and len(ours) > 10
    assert [name for name in ours if (ours[name] != theirs[name]).any()] == []


def test_settings_that_matter_are_refused_with_the_difference(make_config, make_step, tmp_path, caplog):
    config = make_config()
    write_checkpoint(
        tmp_path / "a.ckpt", collect_tensors(make_step(config).state(), 1), make_meta(config, Progress(), 1, 10)
    )
    checkpoint = read_checkpoint(tmp_path / "a.ckpt")
    changed = make_config(base_lr=1e-3, mix_up=0.5, log_steps=7, data_url="./elsewhere")
    with pytest.raises(ConfigError) as error:
        restore(checkpoint, make_step(changed).state(), changed, 1, 10)
    message = str(error.value)
    assert "base_lr: 0.0005 -> 0.001" in message and "mix_up: 0.8 -> 0.5" in message
    assert "log_steps" not in message and "data_url" not in message and "\n" not in message
    allowed = make_config(base_lr=1e-3, allow_config_change=True)
    logging.getLogger("focal").propagate = True
    restore(checkpoint, make_step(allowed).state(), allowed, 1, 10)
    assert "base_lr: 0.0005 -> 0.001" in caplog.text


def test_unchanged_settings_have_no_difference(make_config):
    config = make_config()
    saved = make_meta(config, Progress(), 1, 10)["config"]
    assert changed_settings(saved, make_config(train_url="./x", resume="auto")) == []
    del saved["layer_decay"]  # as if written before the key existed
    assert changed_settings(saved, config) == []
    assert changed_settings(saved, make_config(layer_decay=0.5)) == ["layer_decay: 1.0 -> 0.5"]
    assert changed_settings({**saved, "gone": 3}, config) == ["gone: 3 -> (no such setting)"]


def test_newly_enabled_ema_starts_from_the_weights(make_config, make_step, tmp_path):
    config = make_config(enable_ema=False)
    step = make_step(config)
    write_checkpoint(tmp_path / "a.ckpt", collect_tensors(step.state(), 1), make_meta(config, Progress(), 1, 10))
    with_ema = make_config(enable_ema=True, allow_config_change=True)
    fresh = make_step(with_ema, seed=99)  # a random start of its own, which must not become the average
    restore(read_checkpoint(tmp_path / "a.ckpt"), fresh.state(), with_ema, 1, 10)
    assert (fresh.ema.averages[0].asnumpy() == step.optimizer.parameters_to_train[0].asnumpy()).all()


def test_tensors_that_do_not_fit_are_named(make_config, make_step, tmp_path):
    config = make_config()
    tensors = collect_tensors(make_step(config).state(), 1)
    del tensors["first.weight"]
    tensors["other.weight"] = np.zeros(3, np.float32)
    write_checkpoint(tmp_path / "a.ckpt", tensors, make_meta(config, Progress(), 1, 10))
    with pytest.raises(ConfigError, match="missing first.weight; unexpected other.weight"):
        restore(read_checkpoint(tmp_path / "a.ckpt"), make_step(config).state(), config, 1, 10)


def test_another_number_of_devices_keeps_the_state_and_the_fraction_of_the_epoch(
    make_config, make_step, tmp_path, caplog
):
    config = make_config(accumulation_step=2)
    step = make_step(config)
    step.random_counter.set_data(Tensor(80, step.random_counter.dtype))
    saved = collect_tensors(step.state(), world_size=8)
    assert saved["random_counter"] == 10
    write_checkpoint(tmp_path / "a.ckpt", saved, make_meta(config, Progress(2, 12, 46, 1.0, 46), 8, 40))
    other = make_step(config)
    logging.getLogger("focal").propagate = True
    # 8 devices, 40 batches each: 20 updates an epoch; now 2 devices, 160 batches, 80 updates
    progress = restore(read_checkpoint(tmp_path / "a.ckpt"), other.state(), config, 2, 160)
    assert (progress.epoch, progress.micro_batches, progress.step) == (2, 48, 2 * 80 + 24)
    assert int(other.optimizer.position.asnumpy()) == 184
    assert int(other.random_counter.asnumpy()) == 20
    assert "order of the data is not" in caplog.text


@pytest.mark.parametrize(
    "steps_before, devices, steps_now, expected",
    [
        (13, 2, 6, (5, 1 * 6 + 5)),  # 12 of 13 steps are nearly all of 6, and one is left to end the epoch
        (13, 1, 7, (6, 1 * 7 + 6)),  # images were removed from the data
        (13, 1, 26, (24, 1 * 26 + 24)),  # or added
    ],
)
def test_the_last_step_of_an_epoch_is_never_skipped(
    make_config, make_step, tmp_path, steps_before, devices, steps_now, expected
):
    config = make_config()
    progress = Progress(1, 12, 1 * steps_before + 12)
    meta = make_meta(config, progress, 1, steps_before)
    write_checkpoint(tmp_path / "a.ckpt", collect_tensors(make_step(config).state(), 1), meta)
    resumed = restore(read_checkpoint(tmp_path / "a.ckpt"), make_step(config).state(), config, devices, steps_now)
    assert (resumed.micro_batches, resumed.step) == expected
    assert resumed.position(steps_now) < 2


def test_a_whole_epoch_is_resumed_at_its_end(make_config, make_step, tmp_path):
    """A failed evaluation, or divergence at the last step, stops a training before the epoch is counted."""
    config = make_config(accumulation_step=2)
    path = tmp_path / "a.ckpt"
    meta = make_meta(config, Progress(1, 6, 6), 1, 7)  # a seventh micro-batch never fills an update
    write_checkpoint(path, collect_tensors(make_step(config).state(), 1), meta)
    resumed = restore(read_checkpoint(path), make_step(config).state(), config, 1, 7)
    assert (resumed.epoch, resumed.micro_batches, resumed.step) == (1, 6, 6)
    resumed = restore(read_checkpoint(path), make_step(config).state(), config, 2, 4)
    assert (resumed.epoch, resumed.micro_batches, resumed.step) == (1, 4, 4)


def test_progress_of_earlier_versions_is_read(make_config, make_step, tmp_path):
    config, step = make_config(), make_step(make_config())
    meta = make_meta(config, Progress(), 1, 10)
    meta["progress"] = {"epoch": 1, "step_in_epoch": 3, "update": 13, "best_top1": 5.0, "last_good_update": 12}
    write_checkpoint(tmp_path / "a.ckpt", collect_tensors(step.state(), 1), meta)
    resumed = restore(read_checkpoint(tmp_path / "a.ckpt"), make_step(config).state(), config, 1, 10)
    assert resumed == Progress(1, 3, 13, 5.0, 12)


def test_weights_only_leaves_out_the_state_of_the_optimizer(make_config, make_step):
    step = make_step(make_config())
    names = set(weights_only(collect_tensors(step.state(), 1), step.state()))
    plain = {"first.weight", "first.bias", "second.weight"}
    assert names == plain | {f"ema.{name}" for name in plain}
