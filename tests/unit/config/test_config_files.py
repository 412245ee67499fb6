"""Shipped configurations, the flags' help, and that no declared setting is idle."""

import ast
import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from focal.config import load_config
from focal.config.architectures import PAPER_TOP1, published_archs
from focal.config.schema import SECTIONS
from focal.models import list_models
from focal.models.macs import official_multiply_adds, true_multiply_adds
from tests.numerics.reference_cases import listing

ROOT = Path(__file__).resolve().parents[3]
FILES = sorted((ROOT / "configs").glob("*.yaml"))
PUBLISHED = [path for path in FILES if path.stem in published_archs()]


def header(path: Path) -> str:
    """The comment lines a file starts with."""
    return re.match(r"(#.*\n)+", path.read_text()).group()


def parameter_count(arch: str) -> int:
    """From the authors' state dict."""
    total = 0
    for shape, _, kind in listing(arch)["state_dict"].values():
        if kind == "param":
            count = 1
            for size in shape:
                count *= size
            total += count
    return total


def test_nine_models_are_published():
    assert [path.stem for path in PUBLISHED] == sorted(list_models())
    assert len(list_models()) == len(PUBLISHED) == 9


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_header(path):
    lines = header(path)
    assert "COSTLINE" not in lines
    for title in ("Command:", "Cost:", "Expect:"):
        assert len(re.findall(rf"^# {title} +\S", lines, re.MULTILINE)) == 1, title
    assert f"configs/{path.name}" in lines


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_header_figures(path):
    """Parameters, multiply-adds and accuracy in the header are the counted and the published ones."""
    lines, model = header(path), load_config(path).model
    assert f"Cost:     {parameter_count(path.stem) / 1e6:.2f} M parameters" in lines
    assert f"{true_multiply_adds(model) / 1e9:.2f} G multiply-adds per image and forward pass" in lines
    assert f"({official_multiply_adds(model) / 1e9:.2f} G as the authors count)" in lines
    assert f"Expect:   {PAPER_TOP1[path.stem]} % top-1 (paper)" in lines


# Table 2 of the paper and the authors' README, per cent.
EXPECTED_TOP1 = {"focal_tiny": 82.2, "focal_tiny_useconv": 82.7, "focal_small": 83.6, "focal_small_useconv": 83.8,
                 "focal_base": 84.0, "focal_base_useconv": 84.2, "focalv2_tiny_useconv": 82.4,
                 "focalv2_small_useconv": 83.6, "focalv2_base_useconv": 84.0}  # fmt: skip


def test_published_accuracies():
    assert {f"{name}_patch4_window7_224": top1 for name, top1 in EXPECTED_TOP1.items()} == PAPER_TOP1


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_network_is_the_authors(path):
    """The arguments with which the authors' constructor gave the reference's state dicts."""
    config = load_config(path)
    case = listing(path.stem)
    assert config.model.focal_version == case["version"]
    assert config.model.use_conv_embed == ("useconv" in path.stem)
    for name, expected in case["config"].items():
        ours = getattr(config.model, {"img_size": "image_size"}.get(name, name))
        if name == "drop_path_rate":  # without effect on the reference figures, and zero there
            size = path.stem.split("_")[1]
            assert ours == {"tiny": 0.2, "small": 0.3, "base": 0.5}[size]
        else:
            assert ours == (tuple(expected) if isinstance(expected, list) else expected), name
    if config.model.focal_version == 2:
        assert config.model.focal_topK == 128


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_recipe_is_the_reports(path):
    """The nine files differ in the network alone."""
    network = {"arch", "drop_path_rate", "embed_dim", "depths", "num_heads", "focal_topK", "use_conv_embed"}
    report = yaml.safe_load((ROOT / "configs/focalv2_small_useconv_patch4_window7_224.yaml").read_text())
    own = yaml.safe_load(path.read_text())
    assert {k: v for k, v in own.items() if k not in network} == {k: v for k, v in report.items() if k not in network}
    # The file and the name alone give the same network.
    assert load_config(path).model == load_config({"arch": path.stem}).model


def attributes_read() -> set[tuple[str, str]]:
    """(what it stands on, name) of every attribute in the code that does the work."""
    scripts = [ROOT / name for name in ("train.py", "eval.py", "export.py")] + sorted((ROOT / "scripts").glob("*.py"))
    sources = [path for path in (ROOT / "src" / "focal").rglob("*.py") if path.parent.name != "config"]
    found = set()
    for path in sources + [path for path in scripts if path.exists()]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                owner = node.value
                name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
                found.add((name.lstrip("_"), node.attr))
    return found


def test_every_setting_is_read():
    """As `model.depths`, `config.model.depths` or `self._model.depths`, outside src/focal/config."""
    read = attributes_read()
    idle = [
        f"{section}.{field.name}"
        for section, kind in SECTIONS.items()
        for field in dataclasses.fields(kind)
        if (section, field.name) not in read
    ]
    for_export = [] if (ROOT / "export.py").exists() else ["run.file_format", "run.file_name"]
    assert idle == ["data.set", *for_export]  # set has one legal value, which loading checks


def test_help_lists_every_key():
    command = [sys.executable, str(ROOT / "train.py"), "--help"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0 and result.stderr == ""
    assert "--config FILE" in result.stdout and "configs/<arch>.yaml" in result.stdout
    for kind in SECTIONS.values():
        for field in dataclasses.fields(kind):
            assert re.search(rf"^  --{field.name} {field.name.upper()}\b", result.stdout, re.MULTILINE), field.name
            assert len(field.metadata["help"]) > 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--config", "configs/focal_tinny_patch4_window7_224.yaml"], "did you mean configs/focal_tiny_patch4"),
     (["--epoch", "3"], "error: unknown flag --epoch; did you mean epochs?"),
     (["--batch_size", "some"], "error: batch_size: 'some' is not an integer")],
)  # fmt: skip
def test_mistakes_end_in_one_line(arguments, message):
    command = [sys.executable, "train.py", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=10, cwd=ROOT)
    assert result.returncode == 2 and result.stdout == ""
    assert message in result.stderr and result.stderr.count("\n") == 1
