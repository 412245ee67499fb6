"""What each precision level casts, seen in the compiled network's values and formats."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from focal.config import load_config
from focal.distributed import chip as chip_module
from focal.errors import UserError
from focal.models import create_model
from focal.models.precision import CastOutput, apply_precision


def make_network(stages=1, **overrides):
    per_stage = {"depths": [1, 1], "num_heads": [1, 2], "focal_stages": [0, 1], "focal_levels": [2, 2],
                 "focal_windows": [3, 1], "expand_sizes": [0, 0]}  # fmt: skip
    keys = {"arch": "focalv2_mini", "embed_dim": 16, "num_classes": 4, "image_size": 32, "window_size": 4,
            "focal_topK": 4, "device_target": "CPU", "amp_level": "O0"}  # fmt: skip
    keys.update({name: values[:stages] for name, values in per_stage.items()})
    return create_model(load_config({**keys, **overrides}))


class Probe(nn.Cell):
    """Formats of what a block's parts hand on."""

    def __init__(self, network):
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, images):
        tokens = self.network.embed(images)
        block = self.network.layers[0].blocks[0]
        norm = block.norm1(tokens)
        return tokens, norm, block.mlp.fc1(norm), self.network.layers[0].run_blocks(tokens), self.network(images)


HALF, FULL = ms.float16, ms.float32
EXPECTED = {  # tokens, norm, Dense, tokens after a block, logits
    "O0": (FULL, FULL, FULL, FULL, FULL),
    "O1": (FULL, FULL, HALF, FULL, HALF),
    "O2": (HALF, HALF, HALF, HALF, HALF),
    "O3": (HALF, HALF, HALF, HALF, HALF),
}


@pytest.mark.parametrize("level", EXPECTED)
def test_formats(level):
    network = make_network()
    names = [parameter.name for parameter in network.get_parameters()]
    apply_precision(network, level, keep_bn_fp32=level != "O3")
    found = Probe(network)(Tensor(np.zeros((2, 3, 32, 32), np.float32)))
    assert tuple(value.dtype for value in found) == EXPECTED[level]
    assert [parameter.name for parameter in network.get_parameters()] == names
    assert all(p.dtype == ms.float32 for p in network.trainable_params()), "master weights"


@pytest.mark.parametrize(
    "level, keep, exact", [("O1", True, True), ("O2", True, True), ("O3", True, True), ("O3", False, False)]
)
def test_norms_compute_in_float32_unless_told_otherwise(level, keep, exact):
    """Values around 1000 that differ by less than float16 can tell apart."""
    network = make_network()
    apply_precision(network, level, keep)
    norm = network.layers[0].blocks[0].norm1
    values = (1000 + np.arange(16) * 0.1).astype(np.float32).reshape(1, 1, 16)
    expected = (values - values.mean()) / np.sqrt(values.var() + 1e-5)
    error = np.abs(norm(Tensor(values)).asnumpy().astype(np.float32) - expected).max()
    assert (error < 2e-3) == exact, error


def test_position_bias_and_last_norm_stay_float32():
    network = make_network()
    apply_precision(network, "O2")
    bias = network.layers[0].blocks[0].attn.position_bias()
    assert bias.dtype == ms.float32
    assert not isinstance(network.norm, CastOutput)
    assert network.norm(Tensor(np.ones((1, 4, 16), np.float16))).dtype == ms.float32


def test_networks_stay_close_to_float32():
    images = Tensor(np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32))
    expected = make_network().set_train(False)(images).asnumpy()
    for level in ("O1", "O2", "O3"):
        network = make_network().set_train(False)
        apply_precision(network, level, keep_bn_fp32=False)
        found = network(images).asnumpy().astype(np.float32)
        assert 0 < np.abs(found - expected).max() < 2e-2 * np.abs(expected).max(), level


def test_o0_changes_nothing():
    network = make_network()
    cells = [type(cell) for _, cell in network.cells_and_names()]
    apply_precision(network, "O0")
    assert [type(cell) for _, cell in network.cells_and_names()] == cells


def test_bf16_sets_bfloat16_products():
    """CPU has no bfloat16 product: only the casts are looked at."""
    network = make_network()
    apply_precision(network, "bf16")
    fc1 = network.layers[0].blocks[0].mlp.fc1
    assert fc1.bf16 and not fc1.fp16


def test_bf16_on_a_910a_is_refused_before_anything_is_changed(monkeypatch):
    network = make_network()
    cells = [type(cell) for _, cell in network.cells_and_names()]
    monkeypatch.setattr(chip_module, "ascend_chip", lambda: "ascend910")
    monkeypatch.setattr(ms, "get_context", lambda name: {"device_target": "Ascend"}[name])
    with pytest.raises(UserError, match=r"amp_level: bf16 .* this chip, ascend910, has no bfloat16; use O1"):
        apply_precision(network, "bf16")
    assert [type(cell) for _, cell in network.cells_and_names()] == cells


class SplitFactors(nn.Cell):
    """Drop path's factors as each branch gets them."""

    def __init__(self, network):
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, factors):
        stages = self.network.split_drop_path(factors, 2)
        return stages[0][0] + stages[1][0]


@pytest.mark.parametrize(("level", "expected"), [("O0", FULL), ("O1", HALF), ("O2", HALF), ("O3", HALF)])
def test_drop_path_factors_have_the_format_of_the_products(level, expected):
    """Cast once for all branches, not in each of them."""
    network = make_network(stages=2, drop_path_rate=0.2).set_train()
    apply_precision(network, level)
    factors = np.arange(8, dtype=np.float32).reshape(4, 2)  # two blocks with two branches, two images
    found = SplitFactors(network)(Tensor(factors))
    assert [branch.dtype for branch in found] == [expected] * 4
    np.testing.assert_array_equal([branch.asnumpy().reshape(-1) for branch in found], factors)
