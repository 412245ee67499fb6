"""MACs against PyTorch's counter on the authors' code, and the zoo's table."""

import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from focal.config.architectures import published_archs
from focal.models import create_model
from focal.models.macs import actual_macs, keys_per_query
from focal.models.official_buffers import block_buffers
from focal.models.stages import create_stages
from tests.numerics.reference_cases import WITH_FIGURES, case_config, figures

# torch.utils.flop_counter.FlopCounterMode (PyTorch 2.13.0, half of its total) around one image's forward pass of the
# authors' code (microsoft/Focal-Transformer, commit 57bb303); second: the part in version 2's coordinate MLPs, which
# run there once per pair of query and key.
COUNTED = {
    "nano_v1": (20379136, 0),
    "nano_v1_levels3": (21505536, 0),
    "nano_v1_img96": (51407616, 0),
    "nano_v1_pool_conv": (20379136, 0),
    "v1_pool_none": (18459136, 0),
    "v1_shift": (116423168, 0),
    "v1_rect": (32397824, 0),
    "v1_misc": (17757696, 0),
    "nano_v2": (20006656, 1061120),
    "nano_v2_levels3": (21133056, 1487104),
    "nano_v2_useconv": (22783744, 1061120),
    "v2_pool_conv_levels3": (21306880, 1590272),
    "v2_rect": (39302656, 1704960),
    "v2_stages": (19688960, 1053696),
    "focal_tiny_patch4_window7_224": (4953223680, 0),
    "focal_tiny_useconv_patch4_window7_224": (5199788544, 0),
    "focalv2_tiny_useconv_patch4_window7_224": (5388412672, 324099328),
}


def mlps_of_padding(model):
    """MACs that our MLPs spend on padding tokens; the authors pad for the attention alone."""
    total = 0
    for stage in create_stages(model):
        padding = stage.map.num_tokens - stage.map.height * stage.map.width
        total += stage.depth * 2 * padding * stage.channels * int(stage.channels * model.mlp_ratio)
    return total


@pytest.mark.parametrize("name", COUNTED)
def test_actual_macs_are_those_that_pytorch_counts(name):
    total, in_coordinate_mlps = COUNTED[name]
    model = case_config(name).model
    padding = mlps_of_padding(model)
    assert actual_macs(model) == total - in_coordinate_mlps + padding
    assert (padding > 0) == (name in ("nano_v1_img96", "v1_rect"))


def layer_products(network, images):
    """MACs of all Dense and Conv2d of one forward pass in PyNative mode, from the shapes that pass through."""
    total = []

    def count(cell, inputs, output):
        if isinstance(cell, nn.Dense):
            total.append(output.size * cell.in_channels)
        else:
            total.append(output.size * cell.in_channels * int(np.prod(cell.kernel_size)) // cell.group)

    for name, cell in network.cells_and_names():
        if isinstance(cell, (nn.Dense, nn.Conv2d)) and "position_bias" not in name:
            cell.register_forward_hook(count)
    network(images)
    return sum(total)


@pytest.mark.parametrize("name", ["nano_v1_levels3", "v1_rect", "nano_v2_useconv", "v2_rect"])
def test_actual_macs_are_what_the_network_computes(name, pynative_mode):
    """Dense and convolutions by hooks, attention by the sizes of its tables, fc pooling by its windows."""
    config = case_config(name)
    model, network = config.model, create_model(config)
    height, width = model.image_hw
    total = layer_products(network, ms.Tensor(np.zeros((1, 3, height, width), np.float32)))
    for stage in network.layers:
        for block in stage.blocks:
            groups, queries, keys = block.attn.table_shape
            total += 2 * groups * queries * keys * stage.settings.channels
            total += sum(pool.area * pool.num_pooled * stage.settings.channels for pool in block.pool_layers)
    assert total == actual_macs(model)


@pytest.mark.parametrize("name", ["v1_levels4", "nano_v1_expand_even", "v1_pool_mean_stages", "v2_levels", "v2_stages"])
def test_keys_per_query_are_those_of_the_key_tables(name):
    name = "nano_v2_levels3" if name == "v2_levels" else name
    config = case_config(name)
    network = create_model(config)
    for layer in network.layers:
        for index, block in enumerate(layer.blocks):
            assert block.attn.table_shape[2] == keys_per_query(layer.settings, index)


def test_coordinate_mlps_run_once_per_distinct_coordinate(pynative_mode):
    """Not once per pair of query and key; and every distinct coordinate is used."""
    config = case_config("focalv2_tiny_useconv_patch4_window7_224", depths=[1, 1, 1, 1], num_classes=2)
    network = create_model(config)
    rows = {}

    def note(name):
        return lambda cell, inputs, output: rows.setdefault(name, []).append(inputs[0].shape)

    for name, cell in network.cells_and_names():
        if isinstance(cell, nn.Dense) and "coord2rpb_all" in name and name.endswith(".0"):
            cell.register_forward_hook(note(name))
    network(ms.Tensor(np.zeros((1, 3, 224, 224), np.float32)))
    assert len(rows) == 4 * 2 and all(len(shapes) == 1 for shapes in rows.values())
    for stage, layer in enumerate(network.layers):
        attention = layer.blocks[0].attn
        pairs = 0
        for level, indices in enumerate(layer.builder.own_indices()):
            coordinates = block_buffers(layer.settings, 0, attention)[f"attn.topk_cloest_coords_{level}"].reshape(-1, 2)
            pairs += len(coordinates)
            name = f"layers.{stage}.blocks.0.attn.position_bias.coord2rpb_all.{level}.0"
            assert rows[name] == [(len(np.unique(coordinates, axis=0)), 2)]
            assert indices.shape[1] <= 128
        if stage == 0:  # 401,408 + 200,704 pairs of the finest and the pooled level
            assert pairs == 3136 * (128 + 64)
            assert sum(rows[f"layers.0.blocks.0.attn.position_bias.coord2rpb_all.{k}.0"][0][0] for k in (0, 1)) < 14_000


@pytest.mark.slow
def test_list_models_prints_the_zoo():
    """python scripts/list_models.py: a line per model, with figures that the reference has."""
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "scripts/list_models.py"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=120)
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert lines[0].split("  ")[0] == "model" and len(lines) == 11
    for arch, line in zip(published_archs(), lines[1:]):
        assert line.startswith(arch) and line.endswith(f"configs/{arch}.yaml")
        assert (root / f"configs/{arch}.yaml").exists()
        if arch in COUNTED:
            actual = COUNTED[arch][0] - COUNTED[arch][1]
            cells = [cell.strip() for cell in line.split("  ") if cell.strip()]
            assert cells[3] == f"{actual / 1e9:.2f} G"
            if arch in WITH_FIGURES:
                expected = figures(arch)
                assert cells[1:3] == [f"{expected['n_params'] / 1e6:.2f} M", f"{expected['flops'] / 1e9:.2f} G"]
