"""Initial values by their statistics; the same seed gives the same network."""

import mindspore as ms
import numpy as np
import pytest
from scipy import stats

from focal.config import load_config
from focal.models import create_model
from tests.numerics.reference_cases import case_config, listing

P_VALUE = 1e-6  # of every statistical bound; the seed is fixed, so none fails by chance
OPTIONS = {"ape": True, "use_layerscale": True, "layerscale_value": 0.25, "use_pre_norm": True, "use_conv_embed": True}
CASES = {
    "version 1": ("nano_v1", {**OPTIONS, "focal_levels": [3, 2, 2, 2]}),
    "version 1, pooling conv": ("nano_v1_pool_conv", {}),
    "version 2": ("nano_v2", {**OPTIONS, "focal_levels": [3, 2, 2, 2]}),
    "version 2, no conv embed": ("nano_v2", {}),
}


@pytest.fixture(scope="module", params=CASES)
def parameters(request):
    """Official name -> value of every learnable parameter."""
    name, changes = CASES[request.param]
    network = create_model(case_config(name, **changes))
    return {p.name: p.asnumpy().astype(np.float64) for p in network.trainable_params()}


def matching(parameters, *parts, without=()):
    return {
        name: value
        for name, value in parameters.items()
        if any(part in name for part in parts) and not any(part in name for part in without)
    }


def test_dense_weights_are_normal(parameters):
    """Normal with standard deviation 0.02: qkv, proj, MLP, head, and version 2's coordinate MLPs."""
    dense = {
        name: value
        for name, value in matching(parameters, ".weight", without=(".pool_layers.",)).items()
        if value.ndim == 2 and "table" not in name
    }
    assert {"head.weight", "layers.0.blocks.0.attn.qkv.weight", "layers.3.blocks.0.mlp.fc2.weight"} <= dense.keys()
    if any("coord2rpb" in name for name in parameters):
        assert "layers.0.blocks.0.attn.coord2rpb_all.1.2.weight" in dense
    for name, value in dense.items():
        assert stats.kstest(value.reshape(-1) / 0.02, "norm").pvalue > P_VALUE, name
    pooled = np.concatenate([value.reshape(-1) for value in dense.values()])
    assert abs(pooled.mean()) < 5 * 0.02 / np.sqrt(pooled.size)
    assert abs(pooled.std() - 0.02) < 5 * 0.02 / np.sqrt(2 * pooled.size)


def test_bias_tables_start_as_upstream(parameters):
    """Version 1: zeros for the window's own positions, normal for the others; absolute positions normal."""
    drawn = matching(parameters, "bias_table_to_neighbors", "bias_table_to_windows", "absolute_pos_embed")
    zeros = matching(parameters, "relative_position_bias_table", without=("_to_",))
    for name, value in drawn.items():
        assert stats.kstest(value.reshape(-1) / 0.02, "norm").pvalue > P_VALUE, name
    for name, value in zeros.items():
        assert not value.any(), name
    if any("relative_position" in name for name in parameters):
        # Five blocks; the maps of the last two stages are one window, without surroundings.
        assert len(zeros) == 5 and len(matching(drawn, "_to_neighbors")) == 2 and matching(drawn, "_to_windows.")


def test_biases_start_at_zero_and_norms_at_one(parameters):
    vectors = [name for name, value in parameters.items() if name.endswith(".weight") and value.ndim == 1]
    norms = [name[: -len(".weight")] for name in vectors]
    assert {"norm", "layers.0.blocks.0.norm1", "layers.0.downsample.norm", "patch_embed.norm"} <= set(norms)
    for name in norms:
        np.testing.assert_array_equal(parameters[f"{name}.weight"], 1)
        np.testing.assert_array_equal(parameters[f"{name}.bias"], 0)
    for name, value in matching(parameters, ".bias").items():
        weight = parameters.get(f"{name[: -len('.bias')]}.weight")
        if weight is not None and weight.ndim == 2:
            assert not value.any(), name


def test_layer_scales_start_at_layerscale_value(parameters):
    for name, value in matching(parameters, ".gamma_").items():
        np.testing.assert_array_equal(value, 0.25, err_msg=name)


def test_fc_pooling_starts_as_the_mean(parameters):
    weights = matching(parameters, ".pool_layers.")
    weights = {name: value for name, value in weights.items() if name.endswith(".weight") and value.ndim == 2}
    for name, value in weights.items():
        np.testing.assert_allclose(value, np.full(value.shape, 1 / value.size), rtol=1e-6, err_msg=name)


def test_convolutions_are_uniform_within_pytorchs_bound(parameters):
    """PyTorch's default: weight and bias uniform within 1 / sqrt(fan_in), pooling by convolution included."""
    weights = {name: value for name, value in parameters.items() if value.ndim == 4 and name.endswith(".weight")}
    assert "patch_embed.proj.weight" in weights and "layers.2.downsample.proj.weight" in weights
    for name, weight in weights.items():
        bound = 1 / np.sqrt(weight.shape[1] * weight.shape[2] * weight.shape[3])
        bias = parameters[name[: -len("weight")] + "bias"]
        for part, value in (("weight", weight), ("bias", bias)):
            assert np.abs(value).max() <= bound, (name, part)
            assert stats.kstest((value.reshape(-1) / bound + 1) / 2, "uniform").pvalue > P_VALUE, (name, part)
        assert np.abs(weight).max() > 0.9 * bound


def test_only_the_right_parameters_are_constant(parameters):
    """Nothing is constant that should be drawn, and the other way round."""
    constant = {name for name, value in parameters.items() if value.size > 1 and np.ptp(value) == 0}
    for name in constant:
        leaf = name.rsplit(".", 1)[-1]
        assert leaf in ("bias", "gamma_1", "gamma_2", "relative_position_bias_table") or (
            leaf == "weight" and (parameters[name].ndim == 1 or ".pool_layers." in name)
        ), name
    drawn = [name for name in parameters if name not in constant and parameters[name].size > 1]
    values = [parameters[name].reshape(-1)[:2].tolist() for name in drawn]
    assert len({tuple(value) for value in values}) == len(drawn)  # no two start alike


@pytest.mark.parametrize("case", ["nano_v1", "nano_v2_useconv"])
def test_the_seed_decides_every_random_value(case):
    first, again, other = (create_model(case_config(case, seed=seed)) for seed in (3, 3, 4))
    for parameter, same, different in zip(*(n.trainable_params() for n in (first, again, other))):
        np.testing.assert_array_equal(parameter.asnumpy(), same.asnumpy())
        if np.ptp(parameter.asnumpy()) > 0:
            assert (parameter.asnumpy() != different.asnumpy()).mean() > 0.99, parameter.name


def test_neither_mindspores_seed_nor_other_networks_change_the_values():
    ms.set_seed(1)
    first = create_model(case_config("nano_v1")).head.weight.asnumpy()
    ms.set_seed(2)
    create_model(case_config("nano_v2"))
    np.testing.assert_array_equal(create_model(case_config("nano_v1")).head.weight.asnumpy(), first)


def test_another_head_leaves_all_other_values_as_they_are():
    """A value is a function of seed and name alone."""
    ten, five = create_model(case_config("nano_v1")), create_model(case_config("nano_v1", num_classes=5))
    for name, parameter in ten.official_parameters.items():
        if not name.startswith("head."):
            np.testing.assert_array_equal(parameter.asnumpy(), five.official_parameters[name].asnumpy())


def test_qkv_bias_false_leaves_out_the_bias_of_qkv():
    config = case_config("nano_v1", qkv_bias=False)
    names = {p.name for p in create_model(config).trainable_params()}
    assert "layers.0.blocks.0.attn.qkv.weight" in names and "layers.0.blocks.0.attn.qkv.bias" not in names


def test_key_indices_have_no_gradient():
    network = create_model(case_config("nano_v2"))
    buffers = {name for name, entry in listing("nano_v2")["state_dict"].items() if "topk_cloest_indice" in name}
    assert {p.name for p in network.get_parameters() if not p.requires_grad} == buffers


def test_the_loss_of_a_new_network_is_that_of_chance(pynative_mode):
    """Cross-entropy near log(classes): a new network prefers no class."""
    config = load_config({"arch": "focalv2_tiny_useconv_patch4_window7_224", "embed_dim": 24, "depths": [1, 1, 1, 1],
                          "num_heads": [1, 2, 4, 8], "num_classes": 100, "image_size": 112})  # fmt: skip
    network = create_model(config)
    network.set_train(False)
    logits = network(ms.Tensor(np.random.default_rng(0).standard_normal((4, 3, 112, 112)).astype(np.float32))).asnumpy()
    loss = np.log(np.exp(logits).sum(-1)) - logits[:, :1].squeeze(-1)
    np.testing.assert_allclose(loss, np.log(100), atol=1.0)
