"""Data parallel with the real train.py and eval.py: two processes against one with twice the batch; kill and resume."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from focal.distributed.collectives import TIMEOUT_EXIT_CODE
from focal.distributed.dynamic_cluster import free_port
from focal.predictions import Predictions
from tests.integration.digits import write_digits
from tests.integration.jobs import Job, job, python

TRAIN = "tests/integration/spied_train.py"
PATIENCE = 300.0  # seconds for a job that compiles, on a machine that others use as well
TOLERANCE = 1e-5
CLIP = 0.05
# A training of the real train.py that something happens to; nothing is evaluated, which would be compiled first.
LONG = {"script": "train.py", "batch_size": 2, "save_steps": 2, "epochs": 1000, "eval_every": 1000}

NANO = """
arch: focalv2_tiny_useconv_patch4_window7_224
num_classes: 4
image_size: 32
embed_dim: 16
depths: [1]
num_heads: [2]
window_size: 4
focal_levels: [2]
focal_windows: [3]
focal_stages: [0]
expand_sizes: [1]
focal_topK: 16
drop_path_rate: 0.0
epochs: 2
warmup_length: 0
cool_length: 0
base_lr: 0.03
min_lr: 0.0
eps: 1.0e-6
clip_global_norm_value: 0.05
enable_ema: True
ema_decay: 0.9
is_dynamic_loss_scale: True
loss_scale: 1024
scale_window: 3
mix_up: 0
cutmix: 0
auto_augment: none
color_jitter: 0
re_prob: 0
hflip: 0
crop_scale: [1.0, 1.0]
crop_aspect: [1.0, 1.0]
label_smoothing: 0.1
amp_level: O0
log_steps: 1
num_parallel_workers: 1
report: False
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 training and 13 validation images, and the configuration of a tiny network."""
    folder = tmp_path_factory.mktemp("distributed")
    write_digits(folder / "digits", train=64, val=13)
    (folder / "nano.yaml").write_text(NANO)
    return folder


def train(place: Path, name: str, *, script: str = TRAIN, **keys: Any) -> list[str]:
    keys = {"data_url": place / "digits", **keys}
    return python(script, config=place / "nano.yaml", train_url=place / name, **keys)


def finish(command: list[str], log: Path, **environment: str) -> str:
    """Run a job to its end; returns what it said."""
    with job(command, log, **environment) as running:
        assert running.wait(PATIENCE) == 0, running.output
        assert running.left_behind() == {}
        return running.output


def records(place: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (place / name / "metrics.jsonl").read_text().splitlines()]


def state(place: Path, name: str) -> dict[str, np.ndarray]:
    from focal.checkpoint.files import read_checkpoint

    return read_checkpoint(place / name / "checkpoints" / "last.ckpt").tensors


@pytest.fixture(scope="module")
def pair(place: Path) -> Path:
    """The same training twice: one process with batch 8, two with batch 4; steps 3 and 8 overflow on one rank alone.

    8 steps an epoch, two of which make an update: 4 updates an epoch, of which the second and the last are lost. The
    scale window of 3 has the loss scale rise and fall.
    """
    spied = {"FOCAL_SPY_FOLDER": str(place), "FOCAL_SPY_BAD_STEPS": "2,7"}
    finish(train(place, "two", device_num=2, batch_size=4, accumulation_step=2), place / "two.out", **spied)
    for rank in (0, 1):
        (place / f"digests_{rank}.json").rename(place / f"two_digests_{rank}.json")
    finish(train(place, "one", device_num=1, batch_size=8, accumulation_step=2), place / "one.out", **spied)
    return place


def test_ranks_start_and_end_equal(pair: Path) -> None:
    first, second = (json.loads((pair / f"two_digests_{rank}.json").read_text()) for rank in (0, 1))
    assert first["before"] == second["before"]  # although rank 1 was given noise
    assert first["after"] == second["after"]
    assert first["before"] != first["after"]


def test_two_processes_equal_one_with_twice_the_batch(pair: Path) -> None:
    one, two = state(pair, "one"), state(pair, "two")
    assert one.keys() == two.keys()
    from focal.config import load_config
    from focal.models import create_model

    weights = {p.name for p in create_model(load_config(pair / "nano.yaml")).trainable_params()}
    worst = {name: float(np.abs(one[name].astype(np.float64) - two[name]).max()) for name in one}
    print("largest difference of a parameter", max(worst[name] for name in weights))
    assert {name: value for name, value in worst.items() if not value <= TOLERANCE} == {}
    assert any(name not in weights for name in one)  # moments, EMA weights, loss scale and counters are compared too
    moved = max(float(np.abs(one[name] - one[f"ema.{name}"]).max()) for name in weights)
    assert moved > 100 * TOLERANCE  # training went far beyond what would pass for equal
    assert max(record["grad_norm"] or 0 for record in records(pair, "one") if record["kind"] == "train") > CLIP


def test_an_overflow_on_one_rank_skips_the_step_on_all(pair: Path) -> None:
    for name in ("one", "two"):
        updates = [record for record in records(pair, name) if record["kind"] == "train"]
        assert [record["nonfinite"] for record in updates] == [0, 1, 0, 1, 0, 0, 0, 0]
        assert [record["scale"] for record in updates] == [1024, 1024, 512, 512, 256, 256, 256, 512]
    one, two = (
        [record["loss"] for record in records(pair, name) if record["kind"] == "train" and not record["nonfinite"]]
        for name in ("one", "two")
    )
    np.testing.assert_allclose(one, two, rtol=0, atol=TOLERANCE)


def test_evaluation_during_training_is_the_same_in_one_and_in_two_processes(pair: Path) -> None:
    one, two = ([r for r in records(pair, name) if r["kind"] == "val"] for name in ("one", "two"))
    assert len(one) == len(two) == 2
    for single, double in zip(one, two):
        assert single["images"] == double["images"] == 13  # odd, and not a multiple of the batch
        for key in ("top1", "top5", "ema_top1", "ema_top5"):
            assert single[key] == double[key]
        assert abs(single["loss"] - double["loss"]) < TOLERANCE


def test_predictions_of_two_ranks_are_those_of_one(pair: Path) -> None:
    one, two = (Predictions.load(pair / name / "predictions.npz") for name in ("one", "two"))
    assert one.names == two.names and len(one.names) == 13 and one.source == two.source
    np.testing.assert_allclose(two.label_probabilities, one.label_probabilities, atol=TOLERANCE)
    best = max(max(r["top1"], r["ema_top1"]) for r in records(pair, "two") if r["kind"] == "val")
    assert 100 * two.correct.mean() == pytest.approx(best) == two.source["top1"]


def test_eval_py_over_two_ranks_equals_the_training_of_one_to_the_image(pair: Path) -> None:
    """The last evaluation of a training in one process, of the weights that its last checkpoint holds."""
    checkpoint, figures = pair / "one" / "checkpoints" / "last.ckpt", pair / "eval.json"
    command = train(pair, "eval", script="eval.py", device_num=2, batch_size=3, pretrained=checkpoint)
    finish([*command, f"--json={figures}"], pair / "eval.out")
    two, one = json.loads(figures.read_text()), [r for r in records(pair, "one") if r["kind"] == "val"][-1]
    assert (one["images"], one["top1"], one["top5"]) == (two["images"], two["top1"], two["top5"])
    print("difference of the losses", one["loss"] - two["loss"])
    assert one["images"] == 13 and abs(one["loss"] - two["loss"]) < 1e-6


def test_servers_with_other_settings_and_classes_end_before_the_first_step(place: Path) -> None:
    """Two launches of train.py, as on two servers: quietly, each would train another network."""
    shutil.copytree(place / "digits", place / "renamed")
    for split in ("train", "val"):
        (place / "renamed" / split / "0").rename(place / "renamed" / split / "1_of_them")
    servers = [{"weight_decay": 0.05}, {"weight_decay": 0.1, "data_url": place / "renamed"}]
    ranks = {"device_num": 2, "node_num": 2, "master_port": free_port(), "script": "train.py"}
    commands = [train(place, f"server_{node}", node_rank=node, **ranks, **keys) for node, keys in enumerate(servers)]
    with job(commands[0], place / "server_0.out") as first, job(commands[1], place / "server_1.out") as second:
        assert first.wait(120) != 0 and second.wait(120) != 0
        assert first.left_behind() == {} and second.left_behind() == {}
        for running in (first, second):
            assert "differ in their settings and class names and images of train and images of val: rank 1 from" in (
                running.output
            )
            assert "weight_decay: 0.05 on rank 0, weight_decay: 0.1 on rank 1" in running.output
    assert not (place / "server_0" / "checkpoints").exists()


def progress(place: Path, running: Job, name: str, update: int) -> None:
    """Wait until so many updates are recorded and a checkpoint lies there."""

    def far_enough() -> bool:
        file = place / name / "metrics.jsonl"
        saved = (place / name / "checkpoints" / "last.ckpt").exists()
        return saved and file.exists() and len(file.read_text().splitlines()) >= update

    running.wait_until(far_enough, PATIENCE)


@pytest.mark.slow
def test_a_training_resumes_after_a_worker_was_killed_in_mid_epoch(place: Path) -> None:
    """SIGKILL ends the whole job in time; resume continues with two devices, then with one.

    With two, each rank loads the step that it compiled for the first start.
    """
    keys = {**LONG, "compile_cache": place / "cache"}
    with job(train(place, "killed", device_num=2, **keys), place / "killed.out") as running:
        progress(place, running, "killed", update=5)
        killed = time.monotonic()
        os.kill(running.pid_of("rank 1"), signal.SIGKILL)
        assert running.wait(60) == 128 + signal.SIGKILL
        print(f"\nthe job ended {time.monotonic() - killed:.1f} s after rank 1 was killed in mid-epoch")
        assert running.left_behind() == {}
        assert "rank 1 was killed by signal 9 (SIGKILL)" in running.output
    saved = int(state(place, "killed")["optimizer.step"])

    output = finish(train(place, "killed", device_num=2, resume="auto", max_steps=saved + 40, **keys), place / "on.out")
    assert "resumed from" in output and "order of the data is not" not in output
    assert "training step loaded from" in output
    updates = [record["update"] for record in records(place, "killed") if record["kind"] == "train"]
    assert updates == list(range(1, saved + 41))  # none missing, none twice

    most = (saved + 40) * 2 + 4
    output = finish(train(place, "killed", device_num=1, resume="auto", max_steps=most, **keys), place / "one_on.out")
    assert "resumed from" in output
    assert "weights and optimizer state are kept, the order of the data is not" in output


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_job(place: Path) -> None:
    """A stopped process neither fails nor answers: the others notice that no step ends."""
    keys = {**LONG, "compile_cache": place / "cache", "step_timeout": 8}
    with job(train(place, "stuck", device_num=2, **keys), place / "stuck.out") as running:
        progress(place, running, "stuck", update=5)
        os.kill(running.pid_of("rank 1"), signal.SIGSTOP)
        assert running.wait(60) == TIMEOUT_EXIT_CODE
        assert running.left_behind() == {}
        assert "rank 0: no step finished for" in running.output and "(step_timeout 8)" in running.output
