"""The configuration files in configs/: their headers, their networks, and every setting they resolve to."""

import ast
import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml

from focal import list_models
from focal.checkpoint.official import learnable_parameters
from focal.checkpoint.weights import assign_weights
from focal.config import load_config, to_flat_dict
from focal.config.architectures import PAPER_TOP1, published_archs
from focal.config.schema import SECTIONS
from focal.models import create_model
from focal.models.macs import actual_macs, official_macs
from focal.models.stages import check_network
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


def test_each_of_the_nine_published_models_has_a_file():
    assert [path.stem for path in PUBLISHED] == sorted(list_models())
    assert len(list_models()) == len(PUBLISHED) == 9


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_setting_has_the_stored_value(path):
    """The stored values are those of the files when each still listed all of its settings, without a base."""
    settings, differences = json.loads((Path(__file__).parent / "published_settings.json").read_text()).values()
    expected = {**settings, **differences[path.stem]}
    resolved = to_flat_dict(load_config(path))
    assert len(expected) == 115
    for name, value in expected.items():
        assert (resolved[name], type(resolved[name])) == (value, type(value)), name


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_a_published_file_holds_its_header_and_what_differs(path):
    lines = path.read_text().splitlines()
    keys = yaml.safe_load(path.read_text())
    assert len(lines) <= 25
    assert keys.pop("base") == "base/published_model.yaml"
    assert set(keys) <= {"arch", "embed_dim", "depths", "num_heads", "drop_path_rate", "use_conv_embed", "focal_topK"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_header_gives_command_cost_and_expected_accuracy(path):
    lines = header(path)
    for title in ("Command:", "Cost:", "Expect:"):
        assert len(re.findall(rf"^# {title} +\S", lines, re.MULTILINE)) == 1, title
    assert f"configs/{path.name}" in lines


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_the_figures_in_the_header_are_the_counted_and_the_published_ones(path):
    lines, model = header(path), load_config(path).model
    assert f"Cost:     {parameter_count(path.stem) / 1e6:.2f} M parameters" in lines
    assert f"{actual_macs(model) / 1e9:.2f} G MACs per image and forward pass" in lines
    assert f"({official_macs(model) / 1e9:.2f} G as the authors count)" in lines
    assert f"Expect:   {PAPER_TOP1[path.stem]} % top-1 (paper)" in lines


@pytest.mark.parametrize("path", [path for path in FILES if "384" in path.stem], ids=lambda path: path.stem)
def test_the_cost_in_the_header_of_a_fine_tuning_at_384_pixels_is_the_counted_one(path):
    model = load_config(path).model
    larger, published = actual_macs(model), actual_macs(load_config({"arch": model.arch}).model)
    assert f"{larger / 1e9:.2f} G MACs per image and forward pass, {larger / published:.1f} times" in header(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_describes_a_network_that_can_be_built(path):
    model = load_config(path).model
    assert len(check_network(model)) == len(model.depths)


@pytest.mark.parametrize("path", [path for path in FILES if "window12_384" in path.stem], ids=lambda path: path.stem)
def test_every_weight_of_version_1_has_a_counterpart_at_384_pixels(path):
    """Nothing is re-initialised. The networks are the files', but for fewer channels and blocks."""
    few = {"embed_dim": 4, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]}
    config = load_config(path, few)
    small = create_model(load_config({"arch": config.model.arch, **few}))
    network = create_model(config)
    report = assign_weights(network, {p.name: p.asnumpy() for p in small.get_parameters()}, "x.ckpt")
    learnable = set(learnable_parameters(network))
    assert learnable <= set(report.loaded) and not report.absent and not report.unexpected
    assert not learnable & set(report.reinitialised)
    assert len(report.resampled) == 4 + 4 + 3 + 4, "own windows, pooled windows, surroundings, pooling"


# Table 2 of the paper and the authors' README, per cent.
EXPECTED_TOP1 = {"focal_tiny": 82.2, "focal_tiny_useconv": 82.7, "focal_small": 83.6, "focal_small_useconv": 83.8,
                 "focal_base": 84.0, "focal_base_useconv": 84.2, "focalv2_tiny_useconv": 82.4,
                 "focalv2_small_useconv": 83.6, "focalv2_base_useconv": 84.0}  # fmt: skip


def test_expected_accuracies_are_the_papers():
    assert {f"{name}_patch4_window7_224": top1 for name, top1 in EXPECTED_TOP1.items()} == PAPER_TOP1


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_the_network_is_the_authors(path):
    """It has the arguments with which the authors' constructor made the reference's state dicts."""
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
def test_the_name_alone_gives_the_network_of_the_file(path):
    assert load_config(path).model == load_config({"arch": path.stem}).model


def attributes_read() -> set[tuple[str, str]]:
    """(owner, name) of every attribute that the code outside src/focal/config reads."""
    scripts = [ROOT / name for name in ("train.py", "eval.py", "export.py")] + sorted((ROOT / "scripts").glob("*.py"))
    sources = [path for path in (ROOT / "src" / "focal").rglob("*.py") if path.parent.name != "config"]
    found = set()
    for path in sources + scripts:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                owner = node.value
                name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
                found.add((name.lstrip("_"), node.attr))
    return found


def test_every_setting_is_read():
    """As `model.depths`, `config.model.depths` or `self._model.depths`, somewhere outside src/focal/config."""
    read = attributes_read()
    idle = [
        f"{section}.{field.name}"
        for section, kind in SECTIONS.items()
        for field in dataclasses.fields(kind)
        if (section, field.name) not in read
    ]
    assert idle == ["data.set"]  # set has one legal value, which loading checks
