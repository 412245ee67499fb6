"""docs/models.md says what is so: its table, its keys, its commands and its example."""

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from focal.checkpoint.files import write_checkpoint
from focal.checkpoint.official import official_state_dict
from focal.config import architectures, load_config
from focal.config.architectures import PAPER_TOP1, published_archs
from focal.config.schema import ModelConfig
from focal.models import create_model
from focal.models.macs import actual_macs, official_macs
from tests.numerics.reference_cases import listing

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs" / "models.md").read_text()


@pytest.mark.parametrize("arch", published_archs())
def test_the_table_of_models_holds_the_computed_figures(arch):
    model = load_config({"arch": arch}).model
    parameters = sum(int(np.prod(s)) for s, _, kind in listing(arch)["state_dict"].values() if kind == "param")
    row = [arch, f"{parameters / 1e6:.2f} M", f"{official_macs(model) / 1e9:.2f} G",
           f"{actual_macs(model) / 1e9:.2f} G", f"{PAPER_TOP1[arch]} %"]  # fmt: skip
    assert f"| {' | '.join(row)} |" in TEXT


def test_every_model_key_is_explained_once():
    options = TEXT[TEXT.index("## Options") : TEXT.index("## Image sizes")]
    first_column = " ".join(re.findall(r"^\|([^|]*)\|", options, re.MULTILINE))
    explained = re.findall(r"`(\w+)`", first_column)
    keys = [name for name in ModelConfig.__dataclass_fields__ if name != "arch"]
    assert sorted(explained) == sorted(keys)


def python_of(heading):
    """The first Python code below a heading."""
    return re.search(r"```python\n(.*?)```", TEXT[TEXT.index(f"{heading}\n") :], re.DOTALL).group(1)


def test_the_python_example_runs_as_it_stands(tmp_path, monkeypatch, pynative_mode):
    """With a smaller network under the name of the tiny one, smaller images, and a checkpoint with seven classes."""
    small = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (3, 6, 12, 24), "drop_path_rate": 0.2}
    monkeypatch.setitem(architectures._SIZES, "tiny", small)
    monkeypatch.setitem(architectures._SHARED, "image_size", 112)
    code = python_of("## In Python").replace("224, 224", "112, 112").replace("256, 320", "64, 96")
    source = create_model(load_config({"arch": "focalv2_tiny_useconv_patch4_window7_224", "seed": 8, "num_classes": 7}))
    weights = {parameter.name: parameter.asnumpy() for parameter in source.get_parameters()}
    averages = {f"ema.{name}": value for name, value in weights.items()}
    (tmp_path / "OUT" / "best").mkdir(parents=True)
    write_checkpoint(tmp_path / "OUT" / "best" / "best.ckpt", {**weights, **averages}, {})
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code, "docs/models.md", "exec"), names)
    assert names["names"] == ["focalv2_tiny_useconv_patch4_window7_224"]
    assert names["logits"].shape == (1, 5) and names["strides"] == [8, 16, 32]
    for parameter in names["network"].get_parameters():
        if not parameter.name.startswith("head."):
            np.testing.assert_array_equal(parameter.asnumpy(), weights[parameter.name], err_msg=parameter.name)
    shapes = [(1, c, 64 // s, 96 // s) for c, s in zip(names["channels"], names["strides"])]
    assert [output.shape for output in names["maps"]] == shapes


@pytest.mark.parametrize("version", [1, 2])
def test_the_backbone_example_runs_as_it_stands(version, tmp_path, monkeypatch, capsys, pynative_mode):
    """The command and the code as they stand, but for the image size, the kind of file and, once, the version."""
    lines = [line for line in TEXT.splitlines() if "convert_weights.py" in line and "--image_size" in line]
    command = lines[0].split()
    code = python_of("## As a backbone")
    changes = [("480,640", "96,160"), ("480, 640", "96, 160"), ("120, 160)", "24, 40)"), ("60, 80)", "12, 20)"),
               ("30, 40)", "6, 10)"), ("15, 20)", "3, 5)"), (".pth", ".npz")]  # fmt: skip
    arch = "focal_tiny_patch4_window7_224"
    if version == 2:
        changes.append((arch, "focalv2_tiny_useconv_patch4_window7_224"))
        command += ["--pad_windows", "True"]
    for old, new in changes:
        command, code = [word.replace(old, new) for word in command], code.replace(old, new)
    source = create_model(load_config({"arch": command[command.index("--arch") + 1], "seed": 8}))
    state = official_state_dict(source)
    np.savez(tmp_path / command[command.index("--from") + 1], **state)
    monkeypatch.syspath_prepend(str(ROOT))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", command[1:])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / command[1]), run_name="__main__")
    assert end.value.code == 0, capsys.readouterr().err
    names = {}
    exec(compile(code, "docs/models.md", "exec"), names)
    backbone = names["backbone"]
    assert backbone.channels == (96, 192, 384, 768)
    for name, parameter in backbone.network.official_parameters.items():
        if name in state and state[name].shape == parameter.shape and "topk" not in name:
            np.testing.assert_array_equal(parameter.asnumpy(), state[name], err_msg=name)
    assert all(np.isfinite(output.asnumpy()).all() for output in names["maps"])
