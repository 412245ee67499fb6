"""The cache of the compiled step: a second start loads it, and whatever shapes the graph keeps it from being loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from focal.config.loading import all_keys
from focal.distributed.device import Device
from focal.errors import UserError
from focal.trainers import compile_cache
from focal.trainers.compile_cache import compile_step, graph_digest

BATCH = (Tensor(np.zeros((4, 6), np.float32)), Tensor(np.zeros((4, 4), np.float32)))
REPOSITORY = Path(__file__).resolve().parents[3]

# One start of a training: how its step was made ready, and what three steps give.
START = """
import json, sys
import numpy as np
from mindspore import Tensor
from focal.config import load_config
from focal.distributed.device import setup_device
from focal.trainers.compile_cache import compile_step
from focal.trainers.losses import SoftTargetCrossEntropy
from focal.trainers.optimizer import create_optimizer
from focal.trainers.train_one_step import TrainOneStep, trained_parameters
from tests.unit.conftest import toy_batch
from tests.unit.toy_network import ToyNetwork

keys = json.loads(sys.argv[1])
config = load_config({"device_target": "CPU", "amp_level": "O0", "num_classes": 4, **keys})
device = setup_device(config.run)
network = ToyNetwork(config.run.seed, True)
optimizer = create_optimizer(trained_parameters(network), config.optim, config.model, np.full(50, 0.05))
step = TrainOneStep(network, SoftTargetCrossEntropy(), optimizer, config.step, device)
batch = tuple(map(Tensor, toy_batch(0)))
done = compile_step(step, batch, config, device)
print(json.dumps({"done": done, "steps": [step(*batch).asnumpy().tolist() for _ in range(3)],
                  "weights": network.first.asnumpy().tolist()}))
"""


@pytest.fixture(autouse=True)
def run_as_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of the running script is part of the digest; a worker of pytest-xdist runs none."""
    monkeypatch.setattr(sys, "argv", [__file__])


def start(script: Path, **keys) -> dict:
    script.write_text(START, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY / 'src'}:{REPOSITORY}"}
    command = [sys.executable, script, json.dumps(keys)]
    done = subprocess.run(command, cwd=script.parent, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_second_start_loads_the_step_and_a_changed_setting_compiles_its_own(tmp_path):
    cache, script = str(tmp_path / "cache"), tmp_path / "start.py"
    first, second = start(script, compile_cache=cache), start(script, compile_cache=cache, log_steps=7)
    assert first["done"] == "compiled"
    assert second["done"].startswith(f"loaded from {cache}")
    assert (second["steps"], second["weights"]) == (first["steps"], first["weights"])
    # MindSpore alone would take the first start's graph here, with its clipping limit.
    clipped = start(script, compile_cache=cache, clip_global_norm_value=0.01)
    assert clipped["done"] == "compiled"
    plain = start(script, clip_global_norm_value=0.01)
    assert clipped["steps"] == plain["steps"]
    assert clipped["weights"] != first["weights"]
    assert not list(tmp_path.rglob("*unfinished*"))


@pytest.fixture
def digest(make_config, make_step):
    """Digest of the toy network's step under settings, on a device."""

    def digest(device=None, batch=BATCH, change=lambda step: None, **keys):
        config = make_config(**keys)
        step = make_step(config)
        change(step)
        return graph_digest(step, batch, config, device or Device())

    return digest


def test_the_same_step_has_the_same_digest_wherever_its_files_are(digest):
    assert digest() == digest(train_url="elsewhere", resume="auto", log_steps=3, compile_cache="x", max_steps=9)


@pytest.mark.parametrize(
    "keys",
    [
        {"ema_decay": 0.5},
        {"clip_global_norm_value": 1.0},
        {"use_global_norm": False},
        {"amp_level": "O2"},
        {"weight_decay": 0.1},
        {"dataset_sink_mode": True, "device_target": "Ascend"},
        {"recompute": True},
    ],
)
def test_a_setting_of_the_graph_changes_the_digest(digest, keys):
    assert digest(**keys) != digest()


@pytest.mark.parametrize("device", [Device(world_size=2), Device(jit_level="O2")])
def test_the_number_of_ranks_and_the_jit_level_change_the_digest(digest, device):
    assert digest(device) != digest()


def test_what_a_cell_holds_changes_the_digest_though_no_setting_names_it(digest):
    assert digest(change=lambda step: setattr(step.network, "chosen", "flash")) != digest()
    table = [Tensor(np.array([0, value], np.int32)) for value in (1, 2)]
    assert digest(change=lambda step: setattr(step.network, "index", table[0])) != digest(
        change=lambda step: setattr(step.network, "index", table[1])
    )


def test_shapes_of_the_batch_and_of_parameters_change_the_digest(digest):
    larger = (Tensor(np.zeros((8, 6), np.float32)), BATCH[1])
    assert digest(batch=larger) != digest()

    def longer_schedule(step):
        step.optimizer.learning_rates = ms.Parameter(Tensor(np.zeros(51, np.float32)), name="learning_rates")

    assert digest(change=longer_schedule) != digest()


@pytest.mark.parametrize("name", ["MS_DEV_JIT_MAX_CALL_DEPTH", "MS_ASCEND_CHECK_OVERFLOW_MODE"])
def test_variables_of_the_compiler_change_the_digest(digest, monkeypatch, name):
    before = digest()
    monkeypatch.setenv(name, "SATURATION_MODE")
    assert digest() != before


def test_the_code_of_the_package_changes_the_digest(digest, monkeypatch, tmp_path):
    before = digest()
    (tmp_path / "__init__.py").write_text("another version\n", encoding="utf-8")
    monkeypatch.setattr(compile_cache.focal, "__file__", str(tmp_path / "__init__.py"))
    assert digest() != before


def test_only_keys_that_exist_are_left_out_of_the_digest():
    assert set(compile_cache._NO_PART_OF_THE_GRAPH) <= set(all_keys())


def test_a_folder_that_cannot_be_written_is_one_clear_error(make_config, make_step, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    config = make_config(compile_cache=str(tmp_path / "file"))
    with pytest.raises(UserError, match="compile_cache: .* cannot be written"):
        compile_step(make_step(config), BATCH, config, Device())


def test_a_process_without_a_script_compiles_and_says_why(make_config, make_step, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sys, "argv", ["-c"])
    monkeypatch.setattr(compile_cache, "compile_ahead", lambda step, *batch: True)
    config = make_config(compile_cache=str(tmp_path / "cache"))
    assert compile_step(None, BATCH, config, Device()) == "compiled"
    assert "compile_cache is not used" in caplog.text


def test_in_pynative_mode_nothing_is_compiled_and_nothing_is_kept(make_config, make_step, tmp_path, pynative_mode):
    config = make_config(compile_cache=str(tmp_path / "cache"))
    assert compile_step(make_step(config), BATCH, config, Device()) == ""
    assert not (tmp_path / "cache").exists()


def test_without_the_setting_the_step_is_compiled_and_nothing_is_kept(make_config, monkeypatch):
    compiled = []
    monkeypatch.setattr(compile_cache, "compile_ahead", lambda step, *batch: compiled.append(batch) or True)
    assert compile_step(None, BATCH, make_config(), Device()) == "compiled"
    assert compiled == [BATCH]
