"""Weight files of the authors' code to checkpoints and back, through scripts/convert_weights.py."""

import hashlib
import runpy
import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest

from focal.checkpoint import weight_files
from focal.checkpoint.files import write_checkpoint
from focal.checkpoint.official import learnable_parameters, load_official_state_dict, official_state_dict
from focal.checkpoint.weight_files import read_official_weights, write_official_weights
from focal.checkpoint.weights import load_weights
from focal.models import create_model
from tests.numerics.reference_cases import case_config, case_input, figures
from tests.unit.checkpoint.conversion import SCRIPT, assert_same_entries, full_state, needs_torch, settings_file

SUFFIXES = [".npz", ".safetensors", pytest.param(".pth", marks=needs_torch)]


# ---- there and back ----


@pytest.mark.parametrize("case", ["nano_v1", "nano_v2"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_weights_survive_the_way_to_a_checkpoint_and_back(case, suffix, tmp_path, script):
    """To a checkpoint and back, every entry to the bit; the checkpoint gives the authors' logits."""
    state, config = full_state(case), case_config(case)
    theirs, ours, back = tmp_path / f"theirs{suffix}", tmp_path / "ours.ckpt", tmp_path / "new" / f"back{suffix}"
    write_official_weights(str(theirs), state)
    settings = settings_file(tmp_path, config)
    code, out, errors = script("--from", theirs, "--config", settings, "--to", ours)
    content = theirs.read_bytes()
    said = f"{theirs}: {len(content):,} bytes, sha256 {hashlib.sha256(content).hexdigest()}\n"
    assert (code, out, errors) == (0, f"{said}{theirs} -> {ours}\n", [])
    network = create_model(case_config(case, seed=5))
    load_weights(network, str(ours))
    network.set_train(False)
    logits = network(ms.Tensor(case_input(case))).asnumpy()
    np.testing.assert_allclose(logits, figures(case)["logits"], atol=1e-4, rtol=0)
    code, _, errors = script(f"--from={ours}", "--config", settings, f"--to={back}")
    assert (code, errors) == (0, [])
    assert_same_entries(read_official_weights(str(back)), state)


def test_buffers_may_be_missing_from_a_file(tmp_path, script, caplog):
    """Files that hold parameters alone convert as well; version 2 then warns that it breaks ties itself."""
    state = full_state("nano_v2")
    network = create_model(case_config("nano_v2"))
    bare = {name: value for name, value in state.items() if name in learnable_parameters(network)}
    np.savez(tmp_path / "bare.npz", **bare)
    settings = settings_file(tmp_path, case_config("nano_v2"))
    code, out, _ = script("--from", tmp_path / "bare.npz", "--to", tmp_path / "x.ckpt", "--config", settings)
    assert code == 0 and "note" not in out
    assert "this program chooses among equally close tokens itself" in caplog.text
    code, out, _ = script(
        "--from", tmp_path / "bare.npz", "--to", tmp_path / "x.ckpt", "--config", settings, "--num_classes", "7"
    )
    assert code == 0 and "rebuilt" not in out  # none were rebuilt: there were none


@pytest.mark.parametrize("use_ema", [False, True])
def test_ema_weights_are_converted_on_request(use_ema, tmp_path, script):
    """A checkpoint of train.py holds both; --use_ema chooses."""
    config = case_config("nano_v1")
    network = create_model(config)
    raw = {p.name: p.asnumpy() for p in network.get_parameters() if p.name != "random_counter"}
    averages = {f"ema.{name}": value + 1 for name, value in raw.items()}
    write_checkpoint(tmp_path / "last.ckpt", {**raw, **averages, "moment1.head.bias": raw["head.bias"]}, {"epoch": 1})
    settings = settings_file(tmp_path, config)
    code, _, errors = script(
        "--from", tmp_path / "last.ckpt", "--to", tmp_path / "x.npz", "--config", settings, "--use_ema", use_ema
    )
    assert (code, errors) == (0, [])
    state = read_official_weights(str(tmp_path / "x.npz"))
    assert_same_entries({name: state[name] for name in raw}, {name: value + use_ema for name, value in raw.items()})


def test_loading_twice_equals_loading_once():
    """A network may take over one state after another."""
    network = create_model(case_config("nano_v2"))
    state = full_state("nano_v2")
    load_official_state_dict(network, official_state_dict(create_model(case_config("nano_v2", seed=9))))
    load_official_state_dict(network, state)
    assert_same_entries(official_state_dict(network), state)


# ---- what does not fit ----


def test_entries_that_do_not_fit_are_named(tmp_path, script):
    state = full_state("nano_v1")
    del state["norm.weight"], state["layers.1.blocks.0.attn.qkv.bias"]
    state["extra.one"], state["layers.9.x"] = np.zeros(1), np.zeros(2)
    state["layers.0.blocks.0.mlp.fc1.weight"] = np.zeros((3, 4), np.float32)
    np.savez(tmp_path / "bad.npz", **state)
    code, out, errors = script(
        "--from", tmp_path / "bad.npz", "--to", tmp_path / "x.ckpt",
        "--config", settings_file(tmp_path, case_config("nano_v1")),
    )  # fmt: skip
    assert (code, out.count("\n")) == (2, 1) and len(errors) == 1
    for part in ("missing norm.weight", "missing layers.1.blocks.0.attn.qkv.bias",
                 "unexpected extra.one", "unexpected layers.9.x",
                 "misshaped layers.0.blocks.0.mlp.fc1.weight: (3, 4) instead of (128, 32)"):  # fmt: skip
        assert part in errors[0]
    assert not (tmp_path / "x.ckpt").exists()


def test_a_checkpoint_of_another_network_is_refused(tmp_path, script):
    network = create_model(case_config("nano_v2"))
    write_checkpoint(tmp_path / "v2.ckpt", {p.name: p.asnumpy() for p in network.get_parameters()}, None)
    code, _, errors = script(
        "--from", tmp_path / "v2.ckpt", "--to", tmp_path / "x.npz",
        "--config", settings_file(tmp_path, case_config("nano_v1")),
    )  # fmt: skip
    assert code == 2 and len(errors) == 1
    assert errors[0].startswith(f"error: from: {tmp_path / 'v2.ckpt'} does not fit the network")
    assert not (tmp_path / "x.npz").exists()


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_damaged_files_are_refused_in_one_line(suffix, tmp_path, script):
    path = tmp_path / f"half{suffix}"
    write_official_weights(str(path), full_state("nano_v1"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    code, _, errors = script("--from", path, "--to", tmp_path / "x.ckpt")
    assert code == 2 and len(errors) == 1 and f"error: {path}: not a whole" in errors[0]


@pytest.mark.parametrize("value", [np.float32(1), np.array(["a", "b"])])
def test_an_entry_of_another_kind_is_one_error(value, tmp_path, script):
    np.savez(tmp_path / "x.npz", **{**full_state("nano_v1"), "head.weight": value})
    settings = settings_file(tmp_path, case_config("nano_v1"))
    code, _, errors = script("--from", tmp_path / "x.npz", "--to", tmp_path / "x.ckpt", "--config", settings)
    assert code == 2 and len(errors) == 1 and "head.weight" in errors[0]


def test_the_script_knows_the_same_kinds_of_files():
    """It tells before MindSpore, and focal.models with it, is imported."""
    assert runpy.run_path(str(SCRIPT))["WEIGHT_FILES"] == tuple(weight_files.READERS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "error: --from FILE is missing"),
     (["--from", "a.npz"], "error: --to FILE is missing"),
     (["--from", "a.npz", "--to"], "error: argument --to: expected one argument"),
     (["--from", "a.npz", "--to", "b.npz"], "error: exactly one of --from and --to must be a .ckpt file"),
     (["--from", "a.ckpt", "--to", "b.ckpt"], "error: exactly one"),
     (["--from", "nothing.npz", "--to", "b.ckpt"], "error: from: nothing.npz does not exist"),
     (["--from", "a.onnx", "--to", "b.ckpt"], "error: a.onnx: unknown kind of weight file; known are .pth, .pt"),
     (["--from", "a.ckpt", "--to", "b.h5"], "error: b.h5: unknown kind of weight file"),
     (["--from", "a.ckpt", "--to", "b.pdparams"], "error: to: b.pdparams: .pdparams files are read, but not written"),
     (["--from", "a.npz", "--to", "b.ckpt", "--arch", "focal_tiny"], "error: config: cannot read"),
     (["--from", "a.npz", "--to", "b.ckpt", "--archs", "x"], "error: unknown flag --archs; did you mean arch?")],
)  # fmt: skip
def test_mistakes_on_the_command_line_are_one_line_each(arguments, message, tmp_path, script, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, errors = script(*arguments)
    assert (code, out) == (2, "") and len(errors) == 1 and errors[0].startswith(message)


def test_mistakes_are_reported_before_mindspore_is_imported():
    command = [sys.executable, str(SCRIPT), "--from", "nothing.safetensors", "--to", "x.ckpt"]
    result = subprocess.run([sys.executable, "-X", "importtime", *command[1:]], capture_output=True, text=True)
    imported = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    assert imported and not any("mindspore" in line for line in imported)  # whose import takes seconds
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: from: nothing.safetensors does not exist\n"


def test_a_target_that_cannot_be_written_is_an_error(tmp_path, script):
    (tmp_path / "file").write_text("")
    np.savez(tmp_path / "x.npz", **full_state("nano_v1"))
    settings = settings_file(tmp_path, case_config("nano_v1"))
    code, _, errors = script("--from", tmp_path / "x.npz", "--to", tmp_path / "file" / "x.ckpt", "--config", settings)
    assert code == 2 and len(errors) == 1 and "cannot be written" in errors[0]
