"""Weight files of the authors' code to checkpoints and back, through scripts/convert_weights.py."""

import hashlib
import importlib.util
import os
import pickle
import runpy
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import yaml

from focal.checkpoint import weight_files
from focal.checkpoint.files import write_checkpoint
from focal.checkpoint.official import is_buffer, learnable_parameters, load_official_state_dict, official_state_dict
from focal.checkpoint.weight_files import read_official_weights, write_official_weights
from focal.checkpoint.weights import assign_weights, load_weights, read_weights
from focal.config import load_config, to_flat_dict
from focal.errors import UserError
from focal.models import create_model
from tests.numerics.reference_cases import case_config, case_input, figures, loaded_network

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "scripts" / "convert_weights.py"
HAS_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="PyTorch is an optional extra: pip install torch")
SUFFIXES = [".npz", ".safetensors", pytest.param(".pth", marks=needs_torch)]


def run_script(monkeypatch, capsys, *arguments):
    """Run the script in this process: exit code, standard output, standard error."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    monkeypatch.setattr(sys, "path", list(sys.path))
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if "[WARNING]" not in line]  # MindSpore's own
    return end.value.code, captured.out, errors


@pytest.fixture
def script(monkeypatch, capsys, pynative_mode):
    return lambda *arguments: run_script(monkeypatch, capsys, *arguments)


def settings_file(tmp_path, config):
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(to_flat_dict(config)))
    return path


def full_state(case):
    """The authors' state dict of a case, their key indices included."""
    return official_state_dict(loaded_network(case))


def assert_same_entries(left, right):
    assert left.keys() == right.keys()
    for name, value in right.items():
        assert left[name].dtype == value.dtype, name
        np.testing.assert_array_equal(left[name], value, err_msg=name)


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


# ---- PyTorch's files ----


@needs_torch
@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_a_pth_file_may_be_bare_or_wrapped(wrapper, tmp_path):
    import torch

    tensors = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.arange(3), "half": torch.ones(2).bfloat16()}
    path = tmp_path / "weights.pth"
    torch.save(tensors if wrapper is None else {wrapper: tensors, "epoch": 3, "optimizer": {"lr": 1.0}}, path)
    state = read_official_weights(str(path))
    expected = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(3), "half": np.ones(2, "f4")}
    assert_same_entries(state, expected)


@needs_torch
def test_a_pth_file_without_a_state_dict_is_refused(tmp_path):
    import torch

    torch.save({"epoch": 3}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="holds no state dict, neither bare nor under model, state_dict"):
        read_official_weights(str(tmp_path / "weights.pth"))


class Intruder:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("kind", ["pickle", "torch", "npz"])
def test_nothing_in_a_file_is_executed(kind, tmp_path):
    trace = tmp_path / "executed"
    path = tmp_path / ("weights.npz" if kind == "npz" else "weights.pth")
    if kind == "npz":
        np.savez(path, weight=np.array([Intruder(trace)], dtype=object))
        message = "not a whole npz file of plain arrays"
    else:
        message = "would need to run code is refused" if HAS_TORCH else "needs PyTorch; pip install torch"
        if kind == "torch":
            torch = pytest.importorskip("torch", reason="PyTorch is an optional extra: pip install torch")
            torch.save({"model": {"weight": Intruder(trace)}}, path)
        else:
            path.write_bytes(pickle.dumps({"model": {"weight": Intruder(trace)}}))
    with pytest.raises(UserError, match=message) as error:
        read_official_weights(str(path))
    assert not trace.exists() and "\n" not in str(error.value)


def test_a_missing_pytorch_is_reported(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # makes `import torch` fail
    (tmp_path / "weights.pth").write_bytes(b"x")
    with pytest.raises(UserError, match=r"\.pth: needs PyTorch; pip install torch, or use \.safetensors or \.npz"):
        read_official_weights(str(tmp_path / "weights.pth"))
    with pytest.raises(UserError, match="needs PyTorch"):
        write_official_weights(str(tmp_path / "out.pth"), {})


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


def test_every_damage_of_a_compressed_npz_is_one_error(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, a=np.arange(3000, dtype=np.float32), b=np.zeros((3, 4), np.float32))
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for position in rng.integers(0, len(content), 200).tolist():
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :])
        try:
            read_official_weights(str(path))
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 100  # names and dates of entries carry no checksum, the data do
    np.save(tmp_path / "y.npy", np.zeros(3))
    (tmp_path / "y.npy").rename(tmp_path / "y.npz")
    with pytest.raises(UserError, match="not a whole npz file"):
        read_official_weights(str(tmp_path / "y.npz"))


@needs_torch
def test_a_pth_file_of_tensors_that_require_gradients_is_read(tmp_path):
    import torch

    torch.save({"a": torch.nn.Parameter(torch.ones(2))}, tmp_path / "a.pth")
    assert read_official_weights(str(tmp_path / "a.pth"))["a"].tolist() == [1, 1]
    torch.save({"a": torch.eye(2).to_sparse()}, tmp_path / "b.pth")
    with pytest.raises(UserError, match="not a plain array|plain weights"):
        read_official_weights(str(tmp_path / "b.pth"))


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


# ---- another number of classes, another image size ----


def small(version, **changes):
    """A published name, so that its image size is known, with few channels and blocks."""
    arch = f"focal{'v2' if version == 2 else ''}_tiny{'_useconv' if version == 2 else ''}_patch4_window7_224"
    return load_config(
        {"arch": arch, "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "num_classes": 10, **changes}
    )


def test_another_number_of_classes_re_initialises_the_head(tmp_path, script):
    state = full_state("nano_v2")
    np.savez(tmp_path / "x.npz", **state)
    settings = settings_file(tmp_path, case_config("nano_v2"))
    code, out, errors = script(
        "--from", tmp_path / "x.npz", "--to", tmp_path / "x.ckpt", "--config", settings, "--num_classes=7"
    )
    assert (code, errors) == (0, [])
    assert "note: head.weight is re-initialised: the file has (10, 256)\n" in out
    assert "note: head.bias is re-initialised: the file has (10,)\n" in out and out.count("note") == 2
    weights = read_weights(str(tmp_path / "x.ckpt"))
    fresh = create_model(case_config("nano_v2", num_classes=7))
    for name in ("head.weight", "head.bias"):
        np.testing.assert_array_equal(weights.pop(name), fresh.official_parameters[name].asnumpy())
    for name, value in weights.items():  # version 2's key indices among them
        np.testing.assert_array_equal(value, state[name], err_msg=name)


def test_a_network_without_head_leaves_the_files_head_out(tmp_path, script):
    np.savez(tmp_path / "x.npz", **full_state("nano_v1"))
    settings = settings_file(tmp_path, case_config("nano_v1"))
    code, out, _ = script(
        "--from", tmp_path / "x.npz", "--to", tmp_path / "x.ckpt", "--config", settings, "--num_classes=0"
    )
    assert code == 0 and "note: head.weight and head.bias left out: this network has no head" in out
    assert not any(name.startswith("head") for name in read_weights(str(tmp_path / "x.ckpt")))


@pytest.mark.parametrize("version", [1, 2])
def test_another_image_size_rebuilds_the_buffers(version, tmp_path, script):
    """Version 1 gets surroundings in the last stage, whose map was one window before; version 2 other key indices, and
    in its last stage a smaller window to pool."""
    state = official_state_dict(create_model(small(version, seed=3)))
    np.savez(tmp_path / "x.npz", **state)
    side = 256 if version == 1 else 112
    config = small(version, image_size=side, seed=4)
    settings = settings_file(tmp_path, config)
    code, out, errors = script("--from", tmp_path / "x.npz", "--to", tmp_path / "x.ckpt", "--config", settings)
    assert (code, errors) == (0, [])
    weights, fresh = read_weights(str(tmp_path / "x.ckpt")), create_model(config).official_parameters
    reinitialised = {name for name in weights if name not in state or not np.array_equal(weights[name], state[name])}
    indices = {f"layers.{stage}.blocks.0.attn.topk_cloest_indice_{level}" for stage in range(4) for level in (0, 1)}
    neighbours = "layers.3.blocks.0.attn.relative_position_bias_table_to_neighbors"
    if version == 1:
        assert reinitialised == {neighbours}
        assert f"note: {neighbours} is re-initialised: the file has none" in out
    else:
        pooling = "layers.3.blocks.0.pool_layers.0.weight"
        assert f"note: resampled bicubically for these image and window sizes: {pooling}\n" in out
        reinitialised.remove(pooling)
        assert weights[pooling].shape == (1, 16)
        assert reinitialised <= indices and "layers.0.blocks.0.attn.topk_cloest_indice_0" in reinitialised
        assert "buffers rebuilt for this image size" in out
    for name in reinitialised:
        np.testing.assert_array_equal(weights[name], fresh[name].asnumpy(), err_msg=name)
    network = create_model(config)
    load_weights(network, str(tmp_path / "x.ckpt"))
    network.set_train(False)
    assert np.isfinite(network(ms.Tensor(np.ones((1, 3, side, side), np.float32))).asnumpy()).all()


def test_a_ring_that_the_new_size_does_not_have_is_said_to_be_left_out(tmp_path, script):
    """At 112 pixels the map of the third stage is one window."""
    np.savez(tmp_path / "x.npz", **official_state_dict(create_model(small(1))))
    settings = settings_file(tmp_path, small(1, image_size=112))
    code, out, _ = script("--from", tmp_path / "x.npz", "--to", tmp_path / "x.ckpt", "--config", settings)
    neighbours = "layers.2.blocks.0.attn.relative_position_bias_table_to_neighbors"
    assert code == 0 and f"note: {neighbours} left out: a map of this size has no such table\n" in out


def test_key_indices_of_another_map_are_not_converted(tmp_path, script):
    """Without the other buffers, and with windows pooled to their means, no shape tells 64 pixels from 128."""
    state = official_state_dict(create_model(case_config("nano_v2", image_size=64, window_size=4, focal_pool="mean")))
    state = {name: value for name, value in state.items() if "indice" in name or not is_buffer(name)}
    np.savez(tmp_path / "x.npz", **state)
    config = case_config("nano_v2", image_size=128, window_size=8, focal_pool="mean")
    settings = settings_file(tmp_path, config)
    code, out, errors = script("--from", tmp_path / "x.npz", "--to", tmp_path / "x.ckpt", "--config", settings)
    assert (code, errors) == (0, []) and "note: layers.0.blocks.0.attn.topk_cloest_indice_0, " in out
    name = "layers.0.blocks.0.attn.topk_cloest_indice_0"
    own = create_model(config).official_parameters[name].asnumpy()
    np.testing.assert_array_equal(read_weights(str(tmp_path / "x.ckpt"))[name], own)


def test_a_conversion_for_384_pixels_gives_what_loading_at_384_pixels_gives(tmp_path, script):
    """Version 1 with windows of 12: every table of the windows of 7 is resampled, none is left as initialised."""
    state = official_state_dict(create_model(small(1, seed=3)))
    np.savez(tmp_path / "x.npz", **state)
    settings = settings_file(tmp_path, small(1))
    for name, flags in (("same", ()), ("larger", ("--image_size", 384, "--window_size", 12))):
        target = tmp_path / f"{name}.ckpt"
        code, out, errors = script("--from", tmp_path / "x.npz", "--to", target, "--config", settings, *flags)
        assert (code, errors) == (0, []) and "re-initialised" not in out
    assert "note: resampled bicubically for these image and window sizes: layers.0.blocks.0." in out
    network = create_model(small(1, image_size=384, window_size=12))
    load_weights(network, str(tmp_path / "same.ckpt"))
    converted = read_weights(str(tmp_path / "larger.ckpt"))
    assert converted.keys() == network.official_parameters.keys() - {"random_counter"}
    for name, value in converted.items():
        np.testing.assert_array_equal(network.official_parameters[name].asnumpy(), value, err_msg=name)


def test_weights_of_an_own_network_are_converted_at_their_size_and_resampled_when_loaded(tmp_path, script):
    """Its name does not tell for which sizes the file was made."""
    state = full_state("nano_v1")
    np.savez(tmp_path / "x.npz", **state)
    target, settings = tmp_path / "x.ckpt", settings_file(tmp_path, case_config("nano_v1"))
    other = {"image_size": 128, "window_size": 8}
    flags = [str(part) for name, value in other.items() for part in (f"--{name}", value)]
    for more in ([], ["--num_classes", "7"]):
        code, _, errors = script("--from", tmp_path / "x.npz", "--to", target, "--config", settings, *flags, *more)
        assert code == 2 and len(errors) == 1 and "misshaped layers.0.blocks.0.attn." in errors[0]
        assert errors[0].endswith("convert it with its own: what loads the checkpoint resamples it")
        assert not target.exists()
    code, _, errors = script("--from", tmp_path / "x.npz", "--to", target, "--config", settings)
    assert (code, errors) == (0, [])
    network = create_model(case_config("nano_v1", **other))
    report = assign_weights(network, read_weights(str(target)), str(target))
    assert "layers.0.blocks.0.attn.relative_position_bias_table" in report.resampled
    assert not report.reinitialised and not report.absent


def test_absolute_positions_are_resampled(tmp_path, script):
    """A linear ramp of positions stays one."""
    source = create_model(small(1, ape=True))
    state = official_state_dict(source)
    ramp = (np.arange(56) + 0.5) / 56
    rows, columns = np.broadcast_to(ramp[:, None], (56, 56)), np.broadcast_to(ramp, (56, 56))
    state["absolute_pos_embed"] = np.stack([rows, columns] * 4, -1).reshape(1, 56 * 56, 8).astype(np.float32)
    np.savez(tmp_path / "x.npz", **state)
    settings = settings_file(tmp_path, small(1, ape=True, image_size=[192, 256]))
    code, out, _ = script("--from", tmp_path / "x.npz", "--to", tmp_path / "x.ckpt", "--config", settings)
    assert code == 0 and "note: resampled bicubically for these image and window sizes: absolute_pos_embed, " in out
    resampled = read_weights(str(tmp_path / "x.ckpt"))["absolute_pos_embed"].reshape(48, 64, 8)
    inside = (slice(4, -4), slice(4, -4))
    row, column = (np.arange(48) + 0.5) / 48, (np.arange(64) + 0.5) / 64
    np.testing.assert_allclose(resampled[inside][:, :, 0], np.repeat(row[4:-4, None], 56, 1), atol=2e-3)
    np.testing.assert_allclose(resampled[inside][:, :, 1], np.repeat(column[None, 4:-4], 40, 0), atol=2e-3)


def test_a_size_that_windows_do_not_tile_is_refused(tmp_path, script):
    np.savez(tmp_path / "x.npz", **official_state_dict(create_model(small(2))))
    settings = settings_file(tmp_path, small(2, image_size=256))
    code, _, errors = script("--from", tmp_path / "x.npz", "--to", tmp_path / "x.ckpt", "--config", settings)
    assert code == 2 and len(errors) == 1 and "pad_windows: True" in errors[0]


def test_loading_twice_equals_loading_once():
    """A network may take over one state after another."""
    network = create_model(case_config("nano_v2"))
    state = full_state("nano_v2")
    load_official_state_dict(network, official_state_dict(create_model(case_config("nano_v2", seed=9))))
    load_official_state_dict(network, state)
    assert_same_entries(official_state_dict(network), state)
