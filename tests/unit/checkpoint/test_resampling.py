"""Weights for other window and image sizes: PyTorch's bicubic formula, each table of version 1, pooling, the log."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest

from focal.checkpoint.official import learnable_parameters, official_state_dict
from focal.checkpoint.resampling import resample_bicubic, resample_weights
from focal.checkpoint.weights import assign_weights
from focal.config import load_config
from focal.errors import UserError
from focal.models import create_model
from focal.models.focal_keys import StageMap, are_closest, outside_window, topk_closest_indices
from tests.numerics.reference_cases import WITH_FIGURES, case_config, loaded_network

# torch.nn.functional.interpolate(sin(1.3 * y + 0.7 * x^2), mode="bicubic", align_corners=False), PyTorch 2.13, float64.
PYTORCH = {
    (3, 5): [[-0.160784, 0.195933, 0.618770, 0.564064, 0.429087], [0.366014, 0.635872, 0.823896, 0.278909, -0.205962],
             [0.968767, 1.066890, 0.909297, -0.151885, -0.984124], [0.805127, 0.653890, 0.275353, -0.462522, -0.983744],
             [0.542824, 0.224803, -0.260182, -0.623961, -0.817184]],
    (5, 3): [[0.518064, -0.030605, -0.384025], [0.337721, -0.772764, 0.875101], [-0.885241, 0.870769, -0.567402]],
}  # fmt: skip


@pytest.mark.parametrize("old, new", PYTORCH)
def test_resampling_is_pytorchs(old, new):
    rows, columns = np.indices((old, old))
    grid = np.sin(1.3 * rows + 0.7 * columns * columns)
    np.testing.assert_allclose(resample_bicubic(grid, (new, new)), PYTORCH[old, new], atol=1e-6, rtol=0)


def keys(distance):
    """Keys' cubic convolution kernel with a = -0.75."""
    x, a = abs(distance), -0.75
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def timm_table(table, new_side):
    """timm's resize_rel_pos_bias_table_simple for a table (old_side^2, h), place by place."""
    old_side = int(len(table) ** 0.5)
    grid, last = table.reshape(old_side, old_side, -1), old_side - 1
    result = np.zeros((new_side, new_side, grid.shape[2]))
    for y in range(new_side):
        for x in range(new_side):
            row, column = ((place + 0.5) * old_side / new_side - 0.5 for place in (y, x))
            for r in range(int(np.floor(row)) - 1, int(np.floor(row)) + 3):
                for c in range(int(np.floor(column)) - 1, int(np.floor(column)) + 3):
                    source = grid[min(max(r, 0), last), min(max(c, 0), last)]
                    result[y, x] += keys(row - r) * keys(column - c) * source
    return result.reshape(new_side**2, -1)


def test_tables_of_own_and_pooled_windows_follow_timms_formula():
    """Windows of 7 become windows of 12; the focal window has 5 pooled tokens on a side."""
    random = np.random.default_rng(0)
    attn = "layers.0.blocks.0.attn.relative_position_bias_table"
    weights = {attn: random.standard_normal((169, 3)), f"{attn}_to_windows.0": random.standard_normal((3, 121))}
    shapes = {attn: (529, 3), f"{attn}_to_windows.0": (3, 256)}
    fitted, resampled = resample_weights(weights, shapes, None)
    assert resampled == list(weights)
    np.testing.assert_allclose(fitted[attn], timm_table(weights[attn], 23), atol=1e-6)
    pooled = f"{attn}_to_windows.0"
    np.testing.assert_allclose(fitted[pooled], timm_table(weights[pooled].T, 16).T, atol=1e-6)


def surrounding_table(window, expand, function):
    """(1, 1, w^2, S) of a function of the places of query and key in their windows, 0 to 1, and of the part."""
    place = (np.arange(window) + 0.5) / window
    parts, rows, columns = np.nonzero(outside_window(window, expand))
    query = np.stack(np.meshgrid(place, place, indexing="ij"), -1).reshape(-1, 1, 2)
    return function(query[..., 0], query[..., 1], parts, rows, columns)[None, None]


def test_the_table_of_the_surroundings_is_resampled_along_windows_and_sides():
    """A ring of 3 around windows of 7 becomes one around windows of 12: its width stays, its length is resampled.

    Each part of the ring has a constant of its own, which neither the other parts nor the places inside the window,
    which have no keys, may change.
    """
    name = "layers.0.blocks.0.attn.relative_position_bias_table_to_neighbors"

    def constant(row, column, part, key_row, key_column):
        return np.broadcast_to(1.0 + part, (len(row), len(part)))

    def of_query(row, column, part, key_row, key_column):
        return np.broadcast_to(np.sin(9 * row - 5 * column), (len(row), len(part)))

    old, new = (surrounding_table(window, 3, constant) for window in (7, 12))
    fitted, resampled = resample_weights({name: old}, {name: new.shape}, None)
    assert resampled == [name]
    np.testing.assert_allclose(fitted[name], new, atol=1e-6)
    old = surrounding_table(7, 3, of_query)
    fitted, _ = resample_weights({name: old}, {name: new.shape}, None)
    expected = np.broadcast_to(timm_table(old[0, 0, :, :1], 12), new[0, 0].shape)
    np.testing.assert_allclose(fitted[name][0, 0], expected, atol=1e-6)


def test_the_ring_keeps_its_width():
    """A bias that grows with the distance from the window keeps its values, token by token."""
    name = "layers.0.blocks.0.attn.relative_position_bias_table_to_neighbors"

    def distance(row, column, part, key_row, key_column):
        window = {49: 7, 144: 12}[len(row)]
        down, right = part < 2, part % 2 == 0  # which way the four maps are rolled: see outside_window
        rows = np.where(down, key_row - (window - 4), 3 - key_row)
        columns = np.where(right, key_column - (window - 4), 3 - key_column)
        far = np.where(rows > 0, rows, columns)  # the corner belongs to the side that has the whole length
        return np.broadcast_to(far.astype(float), (len(row), len(part)))

    old, new = (surrounding_table(window, 3, distance) for window in (7, 12))
    assert set(np.unique(new)) == {1.0, 2.0, 3.0}
    fitted, _ = resample_weights({name: old}, {name: new.shape}, None)
    np.testing.assert_allclose(fitted[name], new, atol=1e-6)


@pytest.mark.parametrize("shape, new_shape", [((1, 49), (1, 144)), ((5, 1, 7, 7), (5, 1, 12, 12))])
def test_pooling_weights_keep_their_sum(shape, new_shape):
    name = "layers.0.blocks.0.pool_layers.0.weight"
    fitted, _ = resample_weights({name: np.full(shape, 1 / 49)}, {name: new_shape}, None)
    np.testing.assert_allclose(fitted[name], np.full(new_shape, 1 / 144), atol=1e-7)


@pytest.mark.parametrize(
    "name, shape, new_shape",
    [("a.relative_position_bias_table", (169, 3), (529, 6)), ("a.relative_position_bias_table", (170, 3), (529, 3)),
     ("a.relative_position_bias_table_to_windows.0", (3, 121), (4, 256)), ("a.qkv.weight", (4, 49), (4, 144)),
     ("a.relative_position_bias_table_to_neighbors", (1, 2, 49, 131), (1, 2, 144, 252)),
     ("a.pool_layers.0.weight", (1, 49), (2, 144)), ("absolute_pos_embed", (1, 15, 4), (1, 16, 4))],
)  # fmt: skip
def test_what_differs_in_more_than_a_window_is_left_alone(name, shape, new_shape):
    value = np.zeros(shape)
    fitted, resampled = resample_weights({name: value}, {name: new_shape}, (4, 4))
    assert resampled == [] and fitted[name] is value


def nano(image_size, window_size, **changes):
    return case_config("nano_v1", image_size=image_size, window_size=window_size, **changes)


def weights_of(config):
    network = create_model(config)
    return {name: parameter.asnumpy() for name, parameter in learnable_parameters(network).items()}


def test_weights_of_one_size_load_into_a_network_of_another(pynative_mode):
    """As for 224 -> 384 pixels: windows grow with the maps, and no table is re-initialised."""
    weights = weights_of(nano(64, 4, seed=3))
    network = create_model(nano(96, 6, seed=4))
    report = assign_weights(network, weights, "x.ckpt")
    assert set(report.loaded) == set(learnable_parameters(network)) and not report.reinitialised + report.absent
    different = {name for name, value in official_state_dict(network).items() if name in weights and
                 value.shape != weights[name].shape}  # fmt: skip
    assert set(report.resampled) == different and any("_to_neighbors" in name for name in different)
    assert "; resampled bicubically for this image or window size: layers.0.blocks.0." in str(report)
    network.set_train(False)
    assert np.isfinite(network(ms.Tensor(np.ones((1, 3, 96, 96), np.float32))).asnumpy()).all()


def test_a_stage_without_a_ring_gets_one_in_fine_tuning_only():
    """The last map is one window at 64 pixels, and four at 128."""
    weights = weights_of(nano(64, 4, seed=3))
    fresh = weights_of(nano(128, 4, seed=4))
    new = [name for name in fresh if name not in weights]
    assert new and all(name.startswith("layers.") and name.endswith("_to_neighbors") for name in new)
    with pytest.raises(UserError, match=f"missing: {new[0]}"):
        assign_weights(create_model(nano(128, 4, seed=4)), weights, "x.ckpt")
    network = create_model(nano(128, 4, seed=4))
    report = assign_weights(network, weights, "x.ckpt", new_head=True)
    assert report.absent == tuple(new) and "not among the weights and left as initialised" in str(report)
    np.testing.assert_array_equal(network.official_parameters[new[0]].asnumpy(), fresh[new[0]])


def test_version_2_needs_no_resampling_with_padded_windows():
    config = {"arch": "focalv2_tiny_useconv_patch4_window7_224", "embed_dim": 8, "depths": [1, 1, 1, 1],
              "num_heads": [1, 1, 2, 2], "num_classes": 10}  # fmt: skip
    source = create_model(load_config({**config, "seed": 3}))
    weights = {p.name: p.asnumpy() for p in source.get_parameters()}
    network = create_model(load_config({**config, "image_size": 256, "pad_windows": True}))
    report = assign_weights(network, weights, "x.ckpt")
    assert report.resampled == () and all("topk_cloest_indice" in name for name in report.reinitialised)
    for name, parameter in learnable_parameters(network).items():
        np.testing.assert_array_equal(parameter.asnumpy(), weights[name], err_msg=name)


@pytest.mark.parametrize(
    "old, new", [((64, 4), (128, 8)), ((128, 8), (64, 4)), ((64, 4), ([32, 128], 4))], ids=["larger", "smaller", "wide"]
)
def test_version_2_keeps_its_own_keys_where_the_files_belong_to_another_map_of_as_many_windows(old, new):
    """The key indices of the finest level have the same shape here before and after."""
    image_size, window_size = old
    source = create_model(case_config("nano_v2", image_size=image_size, window_size=window_size, seed=3))
    weights = {p.name: p.asnumpy() for p in source.get_parameters()}
    config = case_config("nano_v2", image_size=new[0], window_size=new[1], seed=4)
    network, fresh = create_model(config), create_model(config)
    report = assign_weights(network, weights, "x.ckpt")
    first = "layers.0.blocks.0.attn.topk_cloest_indice_0"
    assert weights[first].shape == network.official_parameters[first].shape and first in report.reinitialised
    for name, parameter in fresh.official_parameters.items():
        if "topk_cloest_indice" in name:
            np.testing.assert_array_equal(network.official_parameters[name].asnumpy(), parameter.asnumpy(), name)


def test_another_choice_among_equally_distant_keys_is_taken_over():
    """The authors' indices, which torch.topk chose, in the small reference cases."""
    cases = [name for name in WITH_FIGURES if name.startswith("nano_v2")]
    assert "nano_v2" in cases
    differ = 0
    for case in cases:
        weights = {p.name: p.asnumpy() for p in loaded_network(case).get_parameters()}
        network = create_model(case_config(case))
        own = {name: parameter.asnumpy() for name, parameter in network.official_parameters.items()}
        assert assign_weights(network, weights, "x.ckpt").reinitialised == ()
        for name in (name for name in own if "topk_cloest_indice" in name):
            np.testing.assert_array_equal(network.official_parameters[name].asnumpy(), weights[name], name)
            differ += not np.array_equal(np.sort(weights[name]), own[name])
    assert differ


def test_indices_that_repeat_or_leave_the_map_are_not_the_closest():
    stage = StageMap.create(8, 8, 4)
    own = topk_closest_indices(stage, 0, 6)
    assert are_closest(stage, 0, own) and are_closest(stage, 0, own[:, ::-1])
    for place, value in ((0, -1), (0, 64), (0, own[0, 1]), (5, 63)):
        changed = own.copy()
        changed[0, place] = value
        assert not are_closest(stage, 0, changed)
