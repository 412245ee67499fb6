"""train.py and eval.py on real images: mistakes told at once, fine-tuning, sink mode, stop on divergence."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from mindspore import Tensor

from focal.checkpoint.files import read_checkpoint, write_checkpoint
from focal.checkpoint.resume import Progress
from focal.checkpoint.series import BestCheckpoints, LastCheckpoints
from focal.config import load_config
from focal.data import EvalData, TrainData, check_data
from focal.data.transforms.on_device import Normalize
from focal.distributed.device import Device
from focal.distributed.signals import StopSignals
from focal.evaluation import EvalStep
from focal.predictions import Predictions
from focal.report.page import missing_packages
from focal.trainers import trainer as training_module
from focal.trainers.metrics import MetricsFiles
from focal.trainers.setup import build_network, build_train_step
from focal.trainers.trainer import Outputs, Trainer
from focal.trainers.training_log import TrainingDiverged
from tests.integration.jobs import REPOSITORY, job
from tests.integration.train_jobs import UPDATES_PER_EPOCH, command, losses, make_workplace, records

ONE_BLOCK = {"depths": [1], "num_heads": [1], "focal_stages": [0], "focal_levels": [2], "focal_windows": [3],
             "expand_sizes": [0]}  # fmt: skip


@pytest.fixture
def focal_log(caplog):
    logger = logging.getLogger("focal")
    logger.propagate, before = True, logger.propagate
    caplog.set_level(logging.INFO, logger="focal")
    yield caplog
    logger.propagate = before


def build(folder, config, train_data=None):
    """A Trainer in this process, as train.py puts it together."""
    layout = check_data(config, config.data.data_url)
    network = build_network(config)
    train_data = train_data or TrainData(config, layout)
    step = build_train_step(config, network, train_data.batches_per_epoch, Device())
    metrics = MetricsFiles(str(folder), str(folder / "tensorboard"))
    last, best = LastCheckpoints(folder / "checkpoints", 2), BestCheckpoints(folder / "best", 1)
    outputs = Outputs(metrics, last, best)
    data = (train_data, EvalData(config, layout))
    return Trainer(
        config, Device(), step, EvalStep(network, Normalize(config.data)), *data, Progress(), outputs, StopSignals()
    )


def load(folder, **overrides):
    config = make_workplace(folder)
    return load_config(config, {"data_url": str(folder / "data"), **overrides})


@pytest.mark.parametrize("script", ["train.py", "eval.py"])
@pytest.mark.parametrize(
    "flags, named",
    [
        (["--batch_sise", "3"], "batch_size"),
        (["--attention", "flash"], "attention: flash requires device_target Ascend, not CPU"),
        (["--pretrained", "no/such.ckpt", "--data_url", "tests"], "no/such.ckpt"),
        (["--resume", "no/other.ckpt", "--data_url", "tests"], "no/other.ckpt"),
        (["--data_url", "no/such/folder"], "no/such/folder"),
        (["--pretrained", "README.md", "--data_url", "tests"], "README.md|holds neither train/ and val/"),
    ],
)
def test_a_mistake_is_reported_in_one_line(script, flags, named):
    start = time.monotonic()
    line = [sys.executable, script, "--device_target", "CPU", "--amp_level", "O0", *flags]
    line += [] if "--pretrained" in flags else ["--pretrained", "LICENSE"]
    done = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    seconds = time.monotonic() - start
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(errors) == 1 and "Traceback" not in done.stderr
    assert any(name in errors[0] for name in named.split("|")), errors[0]
    print(f"{seconds:.1f} s: {errors[0]}")


@pytest.mark.parametrize("device_num", [1, 2])
def test_a_second_training_in_a_folder_is_refused_before_it_writes_anything(tmp_path, device_num):
    """Two of them started with `--resume auto` by a scheduler too early, for example."""
    (tmp_path / "metrics.jsonl").write_text("records\n")
    program = (
        "import sys, time; from focal.checkpoint.folder_lock import lock_folder; lock_folder(sys.argv[1]); print(1)"
    )
    hold = [sys.executable, "-u", "-c", f"{program}; time.sleep(300)", str(tmp_path)]
    with subprocess.Popen(hold, cwd=REPOSITORY / "src", stdout=subprocess.PIPE) as first:
        try:
            assert first.stdout.readline() == b"1\n"
            before = sorted(tmp_path.rglob("*"))
            line = [sys.executable, "train.py", "--train_url", str(tmp_path), "--data_url", "tests", "--resume", "auto",
                    "--device_target", "CPU", "--amp_level", "O0", "--device_num", str(device_num)]  # fmt: skip
            done = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
        finally:
            first.kill()
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert f"is in use by another training (process {first.pid} on " in error
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Configuration, output folder and terminal of a training of two epochs, which several tests start from."""
    folder = tmp_path_factory.mktemp("trained")
    config, output = make_workplace(folder, epochs=2), folder / "out"
    with job(command(config, output, report=not missing_packages()), folder / "train.log") as run:
        assert run.wait(300) == 0, run.output
    return config, output, run.output


@pytest.mark.slow
def test_a_training_can_be_evaluated(trained, tmp_path):
    """What a training leaves; and eval.py on its best checkpoint, raw and EMA weights."""
    config, output, printed = trained
    assert printed.count("attention: products; flash exists on Atlas A2 (910B) and later only") == 1
    names = {path.name for path in output.iterdir()}
    assert names >= {"config.yaml", "log", "metrics.jsonl", "tensorboard", "checkpoints", "best"}
    recorded = load_config(output / "config.yaml")
    assert recorded.optim.epochs == 2 and recorded.run.train_url == str(output)
    assert (output / "report.html").exists() != bool(missing_packages())
    assert json.loads((output / "machine.json").read_text())["devices"] == 1
    of_best = Predictions.load(output / "predictions.npz")

    best = read_checkpoint(output / "best" / "best.ckpt")
    expected = best.meta["accuracy"]
    for use_ema, prefix in ((False, ""), (True, "ema_")):
        flags = {"pretrained": output / "best" / "best.ckpt", "json": tmp_path / "eval.json", "use_ema": use_ema}
        flags["predictions"] = tmp_path / f"predictions_{use_ema}.npz"
        with job(command(config, output, "eval.py", **flags), tmp_path / "eval.log") as run:
            assert run.wait(300) == 0, run.output
            assert "top-1 " in run.output and "images 13" in run.output
        figures = json.loads((tmp_path / "eval.json").read_text())
        assert figures["images"] == 13
        for name in ("top1", "top5", "loss"):
            assert figures[name] == pytest.approx(expected[prefix + name], rel=1e-5), (use_ema, name)
        found = Predictions.load(flags["predictions"])
        assert 100 * found.correct.mean() == pytest.approx(figures["top1"])
        if use_ema == best.meta["best_is_ema"]:
            assert found.names == of_best.names and (found.classes == of_best.classes).all()
            np.testing.assert_allclose(found.probabilities, of_best.probabilities, rtol=1e-4)
    assert expected["top5"] == 100, "four classes: all within five"
    assert records(output, "val")[-1]["images"] == 13


@pytest.mark.slow
def test_pynative_mode_compiles_nothing_and_gives_the_same_losses(trained, tmp_path):
    config, output, _ = trained
    flags = {"graph_mode": 1, "max_steps": 2, "attention": "products"}
    with job(command(config, tmp_path / "pynative", **flags), tmp_path / "pynative.log") as run:
        assert run.wait(300) == 0, run.output
        assert "attention: products, as configured" in run.output
        assert "compiled" not in run.output.replace("compilation included", "")
    assert losses(tmp_path / "pynative") == pytest.approx(losses(output)[:2], rel=1e-6)


@pytest.mark.slow
def test_a_training_can_be_fine_tuned(trained, tmp_path):
    """Its weights under another number of classes, with the first stage frozen."""
    config, output, _ = trained
    data = shutil.copytree(config.parent / "data", tmp_path / "data")
    source = next((data / "train" / "0").iterdir())
    (data / "train" / "extra").mkdir()
    for number in range(10):  # a fifth class, for a head of another shape
        shutil.copy(source, data / "train" / "extra" / f"{number}.png")
    flags = {"pretrained": output / "checkpoints" / "last.ckpt", "num_classes": -1, "freeze_stages": 1, "max_steps": 2,
             "layer_decay": 0.5, "data_url": data}  # fmt: skip
    with job(command(config, tmp_path / "tuned", **flags), tmp_path / "tune.log") as run:
        assert run.wait(300) == 0, run.output
        assert "left as initialised for this number of classes or image size: head.weight, head.bias" in run.output
        assert "frozen: stem and first 1 stage(s)" in run.output
    before = read_checkpoint(output / "checkpoints" / "last.ckpt").tensors
    tuned = read_checkpoint(tmp_path / "tuned" / "checkpoints" / "last.ckpt")
    assert tuned.meta["progress"]["step"] == 2 and tuned.meta["config"]["num_classes"] == 5
    assert load_config(tmp_path / "tuned" / "config.yaml").model.num_classes == 5
    assert not (tmp_path / "tuned" / "report.html").exists(), "report: False in the configuration"
    frozen = [name for name in before if name.startswith(("patch_embed.", "layers.0."))]
    assert len(frozen) > 20 and all((tuned.tensors[name] == before[name]).all() for name in frozen)
    moved = "layers.1.blocks.0.mlp.fc1.weight"
    assert (tuned.tensors[moved] != before[moved]).any() and tuned.tensors["head.weight"].shape[0] == 5
    assert not any(name.startswith(("moment1.patch_embed", "ema.layers.0.")) for name in tuned.tensors)


def sink_stand_in(step, dataset, sink_size):
    """What `mindspore.data_sink` does, without a device queue: CPU has none."""
    assert sink_size == 1
    rows = dataset.create_tuple_iterator(output_numpy=True)
    return lambda: step(*(Tensor(column) for column in next(rows)))


@pytest.mark.slow
def test_sink_mode_gives_the_same_training(trained, tmp_path, monkeypatch):
    """Only the queue itself needs an Ascend: the same Cell, batches and bookkeeping as train.py's, run here."""
    config, output, _ = trained
    keys = {"data_url": str(config.parent / "data"), "device_target": "Ascend", "dataset_sink_mode": True}
    monkeypatch.setattr(training_module.ms, "data_sink", sink_stand_in)
    training = build(tmp_path, load_config(config, keys))
    assert training.run() == 0
    assert len(training.train_step.compile_cache) == 1, "compiled once over all epochs"
    assert len(training.eval_step.compile_cache) == 1
    assert losses(tmp_path) == losses(output) and len(losses(output)) == 2 * UPDATES_PER_EPOCH
    expected, found = (read_checkpoint(folder / "checkpoints" / "last.ckpt").tensors for folder in (output, tmp_path))
    assert expected.keys() == found.keys() and all((expected[name] == found[name]).all() for name in expected)


class PoisonedData:
    """Training batches whose targets turn to nan from a certain update on."""

    def __init__(self, data, from_update):
        self.data, self.from_update, self.count = data, from_update, 0
        self.batches_per_epoch = data.batches_per_epoch
        self.take_replaced, self.known_class_names = data.take_replaced, data.known_class_names

    def epoch(self, epoch, first_step=0):
        for images, targets, *others in self.data.epoch(epoch, first_step):
            self.count += 1
            yield images, targets * (np.nan if self.count > self.from_update else 1), *others


@pytest.mark.slow
@pytest.mark.parametrize("save_steps", [0, 2])
def test_divergence_stops_with_the_last_good_state(tmp_path, focal_log, save_steps):
    keys = {"max_nonfinite_steps": 3, "save_steps": save_steps, "log_steps": 50, "loss_scale": 64}
    config = load(tmp_path, **keys, **ONE_BLOCK)
    data = PoisonedData(TrainData(config, check_data(config, config.data.data_url)), from_update=3)
    training = build(tmp_path / "out", config, data)
    with pytest.raises(TrainingDiverged, match="3 non-finite steps in a row, the last good one: step 3"):
        training.run()
    assert "the last steps before the stop" in focal_log.text and "(good)" in focal_log.text
    last = read_checkpoint(tmp_path / "out" / "checkpoints" / "last.ckpt")
    assert all(np.isfinite(value).all() for value in last.tensors.values())
    assert last.tensors["optimizer.step"] == 3
    assert last.meta["progress"]["last_good_step"] == 3
    assert float(training.train_step.loss_scale.value.asnumpy()) == 8.0


def test_eval_refuses_a_checkpoint_of_another_network(tmp_path):
    config = make_workplace(tmp_path)
    write_checkpoint(tmp_path / "a.ckpt", {"head.weight": np.zeros((4, 7), np.float32)}, {})
    line = command(config, tmp_path / "out", "eval.py", pretrained=tmp_path / "a.ckpt")
    done = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "missing: " in error and "misshaped: head.weight (4, 7) for (4, 32)" in error
