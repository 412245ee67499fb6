"""What a query attends to, against the network itself; the picture of it."""

from __future__ import annotations

import sys

import mindspore as ms
import numpy as np
import pytest
from PIL import Image

from focal.errors import UserError
from focal.models.attention_maps import (
    _attention_input,
    _places_in_block,
    attention_of_query,
    grad_cam,
    key_table,
    query_keys,
    spread_on_map,
)
from focal.models.stages import check_network
from scripts.visualize_attention import main
from tests.numerics.reference_cases import case_config, case_input, loaded_network


@pytest.mark.parametrize(
    "name, stage", [("v1_rect", 0), ("v1_shift", 1), ("nano_v1_levels3", 0), ("nano_v2", 0), ("v2_shift", 1)]
)
def test_weights_and_keys_give_the_output_of_the_networks_own_attention(name, stage, pynative_mode):
    """Weights of the keys times their values, projected, is what the block computes for the query."""
    network, images = loaded_network(name), ms.Tensor(case_input(name)[:1])
    layer = network.layers[stage]
    block = len(layer.blocks) - 1
    attention, (height, width) = layer.blocks[block].attn, (layer.height, layer.width)
    tokens = _attention_input(network, images, stage, block)
    expected, values = attention(tokens).asnumpy()[0], attention.qkv(tokens).asnumpy()[0]
    places = _places_in_block(layer.settings, block)
    values = values.reshape(len(values), 3, layer.settings.heads, -1)[:, 2]  # (T, h, d)
    for query in ((0, 0), (height - 1, width // 3)):
        keys, weights = attention_of_query(network, images, stage, block, query)
        np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
        assert (weights[:, keys.hidden] < 1e-6).all()
        attended = np.einsum("hk,khd->hd", weights, values[keys.keys]).reshape(-1)
        output = attended @ attention.proj.weight.asnumpy().T + attention.proj.bias.asnumpy()
        position = np.flatnonzero((places == query).all(1))[0]
        np.testing.assert_allclose(output, expected[position], atol=2e-5)
        total = spread_on_map(keys, weights.mean(0), (height, width))
        assert total.sum() == pytest.approx(1, abs=1e-5)
        of_levels = [
            spread_on_map(keys, weights.mean(0), (height, width), level) for level in range(layer.settings.levels)
        ]
        np.testing.assert_allclose(sum(of_levels), total, atol=1e-9)


def test_keys_lie_where_the_drawing_of_focal_keys_puts_them(make_config):
    """The worked example: 8 x 8 tokens in windows of 2 x 2, the query in the window of the second row and column."""
    keys = {"image_size": 32, "patch_size": 4, "window_size": 2, "depths": [1], "num_heads": [1], "focal_levels": [2]}
    keys.update(focal_stages=[0], focal_windows=[3], expand_sizes=[1], focal_topK=13, use_conv_embed=False)
    for version, expected in (
        (1, ["", ".oooo", ".oooo", ".oooo", ".oooo"]),
        (2, ["", "...o", "..oo", ".oooo", "..ooo", "...o"]),
    ):
        config = make_config(**keys, arch=f"focal{'v2' if version == 2 else ''}_x")
        (stage,) = check_network(config.model)
        found = query_keys(stage, 0, (3, 2), key_table(stage, 0))
        seen = np.zeros((8, 8), bool)
        for places, level in zip(found.places, found.levels):
            if level == 0:
                seen[tuple(places.T)] = True
        drawn = np.zeros((8, 8), bool)
        for row, line in enumerate(expected):
            for column, mark in enumerate(line):
                drawn[row, column] = mark == "o"
        if version == 1:
            np.testing.assert_array_equal(seen, drawn)
            pooled = {tuple(places.min(0) // 2) for places, level in zip(found.places, found.levels) if level == 1}
            assert pooled == {(row, column) for row in range(3) for column in range(3)}
        else:
            assert seen.sum() == 13 and seen[2:4, 2:4].all()
        assert {tuple(place) for place in found.window} == {(2, 2), (2, 3), (3, 2), (3, 3)}
        assert all(len(places) == 4 for places, level in zip(found.places, found.levels) if level == 1)
    with pytest.raises(UserError, match="query: .8, 0. is not on the map of 8 x 8"):
        query_keys(stage, 0, (8, 0), key_table(stage, 0))


def test_grad_cam_is_what_differences_of_the_logit_give(pynative_mode):
    network, images = loaded_network("nano_v2"), ms.Tensor(case_input("nano_v2")[:1])
    layer, label = network.layers[-1], 3
    x = network.embed(images)
    for earlier in list(network.layers)[:-1]:
        x = earlier(x)
    tokens = layer.run_blocks(x).asnumpy()[0].astype(np.float64)  # (N, C)
    gamma, beta = (p.asnumpy().astype(np.float64) for p in (network.norm.gamma, network.norm.beta))
    row = network.head.weight.asnumpy()[label].astype(np.float64)

    def logit(tokens):
        normal = (tokens - tokens.mean(1, keepdims=True)) / np.sqrt(tokens.var(1, keepdims=True) + network.norm.epsilon)
        return (normal * gamma + beta).mean(0) @ row

    step = 1e-4
    slopes = [
        (logit(tokens + step * unit) - logit(tokens - step * unit)) / (2 * step) for unit in np.eye(tokens.shape[1])
    ]
    expected = np.maximum(tokens @ (np.array(slopes) / len(tokens)), 0).reshape(layer.height, layer.width)
    np.testing.assert_allclose(grad_cam(network, images, label), expected, atol=1e-5)
    assert expected.max() > 0


def test_the_script_draws_geometry_and_attention(monkeypatch, tmp_path, pynative_mode):
    """As many panels as there are levels and heads; mistakes are explained."""
    from focal.checkpoint.files import write_checkpoint
    from focal.checkpoint.resume import Progress, make_meta

    config = case_config("nano_v2")
    network = loaded_network("nano_v2")
    tensors = {p.name: p.asnumpy() for p in network.get_parameters() if p.name != "random_counter"}
    names = [f"class {label}" for label in range(config.model.num_classes)]
    write_checkpoint(tmp_path / "a.ckpt", tensors, make_meta(config, Progress(), 1, 1, names))
    Image.effect_mandelbrot((90, 70), (-2, -1.2, 1, 1.2), 50).convert("RGB").save(tmp_path / "a.png")

    def draw(*arguments):
        flags = ["--output", str(tmp_path / "out.png")]
        monkeypatch.setattr(sys, "argv", ["visualize_attention.py", *map(str, arguments), *flags])
        assert main() == 0
        return Image.open(tmp_path / "out.png").size

    model = [tmp_path / "a.png", "--pretrained", tmp_path / "a.ckpt", "--device_target", "CPU"]
    levels = config.model.focal_levels[0]
    one_row = draw("--geometry", "--arch", "focalv2_tiny_useconv_patch4_window7_224")
    with_mean = draw(*model, "--cam", "class 1", "--query", "5,9")
    all_heads = draw(*model, "--heads", "all", "--stage", 1)
    assert one_row[0] == 2 * 332 + 12 and with_mean[0] == (levels + 2) * 332 + 12
    heights = [size[1] for size in (one_row, with_mean, all_heads)]
    assert heights == [12 + 354 * rows for rows in (1, 2, 1 + config.model.num_heads[1])]
    for flags, message in (
        (["--stage", 9], "stage: 9 is not one of 0 to"),
        (["--block", 9], "block: 9 is not one of 0 to"),
        (["--query", "500,1"], "query: '500,1' is not a place Y,X"),
        (["--query", "a,1"], "query: 'a,1' is not a place Y,X"),
        (["--cam", "no class"], "cam: 'no class' is neither"),
    ):
        with pytest.raises(UserError, match=message):
            draw(*model, *flags)
    with pytest.raises(UserError, match="or --geometry"):
        draw("--stage", 1)
