"""The whole network: its parameters, its drop path and dropout, recomputation."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops

from focal.config import load_config
from focal.data.transforms.drop_path import draw_drop_path
from focal.models import create_model
from focal.models.focal_attention import FocalAttention
from focal.models.focal_transformer import FocalBlock
from focal.models.layers import Dropout
from tests.numerics.reference_cases import case_config

IMAGES = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)

pynative = pytest.mark.usefixtures("pynative_mode")


def tiny_config(**changes):
    """Two blocks, each a stage."""
    per_stage = {"focal_levels": [2, 2], "focal_windows": [3, 3], "expand_sizes": [1, 1], "focal_stages": [0, 1]}
    keys = {"arch": "focal_own", "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
    return load_config({**keys, **per_stage, "image_size": 32, **changes})


# ---- structure ----


def test_both_versions_have_the_same_blocks_and_attention():
    networks = [create_model(case_config(case)) for case in ("nano_v1", "nano_v2")]
    for network in networks:
        blocks = [block for stage in network.layers for block in stage.blocks]
        assert {type(block) for block in blocks} == {FocalBlock}
        assert {type(block.attn) for block in blocks} == {FocalAttention}
    assert not FocalBlock.__subclasses__() and not FocalAttention.__subclasses__()


def test_no_parameter_is_reached_twice():
    """A parameter that two Cells share would be counted, saved and decayed twice."""
    for case in ("nano_v1", "nano_v2"):
        network = create_model(case_config(case))
        parameters = list(network.get_parameters())
        assert len({id(parameter) for parameter in parameters}) == len(parameters)
        assert len({parameter.name for parameter in parameters}) == len(parameters)


# ---- drop path and dropout ----


def dropout_cells(network):
    return [cell for _, cell in network.cells_and_names() if isinstance(cell, Dropout)]


@pynative
def test_drop_path_rises_over_depth_and_dropouts_follow_the_settings():
    """Drop path rises linearly over depth, alike for both branches of a block; dropouts where the settings put them."""
    network = create_model(
        case_config("nano_v1", depths=[1, 2, 3, 1], drop_path_rate=0.3, drop_rate=0.2, attn_drop_rate=0.1)
    )
    blocks = [block for stage in network.layers for block in stage.blocks]
    expected = [0.3 * index / 6 for index in range(7)]
    for block, rate in zip(blocks, expected):
        assert block.drop_path1.drops == block.drop_path2.drops == (rate > 0)
    for block in blocks:
        rates = (
            block.attn.windowed_products.attn_drop.rate,
            block.attn.proj_drop.rate,
            block.mlp.drop1.rate,
            block.mlp.drop2.rate,
        )
        assert rates == (0.1, 0.2, 0.2, 0.2)
    assert network.pos_drop.rate == 0.2
    np.testing.assert_allclose(network.keep_rates.asnumpy()[::2, 0], 1 - np.array(expected), rtol=1e-6)


@pynative
def test_each_dropout_has_its_own_key_and_all_share_one_counter():
    rates = {"depths": [2, 2, 3, 2], "drop_rate": 0.1, "attn_drop_rate": 0.1}
    network = create_model(case_config("nano_v2", **rates))
    cells = dropout_cells(network)
    assert len(cells) == 1 + 4 * 9
    assert len({cell.uniform.key for cell in cells}) == len(cells)
    assert all(cell.counter is network.random_counter for cell in cells)
    assert not network.random_counter.requires_grad and network.random_counter.dtype == ms.int32
    other = create_model(case_config("nano_v2", seed=1, **rates))
    assert {cell.uniform.key for cell in dropout_cells(other)}.isdisjoint({cell.uniform.key for cell in cells})


@pynative
def test_a_network_without_dropout_has_no_counter():
    network = create_model(case_config("nano_v2", drop_path_rate=0.5))
    assert network.random_counter is None
    assert "random_counter" not in {parameter.name for parameter in network.get_parameters()}


@pynative
def test_equal_counters_give_equal_logits_and_evaluation_ignores_them():
    config = tiny_config(drop_path_rate=0.0, drop_rate=0.1, attn_drop_rate=0.1)
    network = create_model(config).set_train(True)

    def logits(counter):
        network.random_counter.set_data(Tensor(counter, ms.int32))
        return network(Tensor(IMAGES)).asnumpy()

    first = logits(0)
    assert np.abs(logits(1) - first).max() > 1e-4
    np.testing.assert_array_equal(logits(0), first)
    twin = create_model(config).set_train(True)
    np.testing.assert_array_equal(twin(Tensor(IMAGES)).asnumpy(), first)
    network.set_train(False)
    evaluated = logits(0)
    np.testing.assert_array_equal(logits(1), evaluated)
    assert np.abs(evaluated - first).max() > 1e-4


@pynative
def test_the_factors_of_drop_path_act_on_one_branch_of_one_sample():
    """The factors of a sample act on it alone, and each row on one branch of one block."""
    network = create_model(tiny_config(drop_path_rate=0.5)).set_train(True)
    evaluated = create_model(tiny_config(drop_path_rate=0.5)).set_train(False)(Tensor(IMAGES)).asnumpy()
    ones = np.ones((4, 4), np.float32)  # (2 * blocks, B)
    np.testing.assert_allclose(network(Tensor(IMAGES), Tensor(ones)).asnumpy(), evaluated, rtol=1e-5, atol=1e-6)
    distinct = set()
    for row in (2, 3):  # rows 0 and 1 belong to the first block, which never drops
        factors = ones.copy()
        factors[row, 1] = 0
        logits = network(Tensor(IMAGES), Tensor(factors)).asnumpy()
        changed = np.abs(logits - evaluated).max(1) > 1e-4
        assert changed.tolist() == [False, True, False, False]
        distinct.add(logits[1].tobytes())
    assert len(distinct) == 2


@pynative
def test_a_network_that_is_given_no_factors_draws_its_own():
    network = create_model(tiny_config(drop_path_rate=0.5)).set_train(True)
    drawn = [network(Tensor(IMAGES)).asnumpy() for _ in range(8)]
    assert len({logits.tobytes() for logits in drawn}) > 1


# ---- recomputation ----


def loss_and_gradients(recompute):
    rates = {"drop_path_rate": 0.5, "drop_rate": 0.1, "attn_drop_rate": 0.1}
    config = tiny_config(recompute=recompute, **rates)
    network = create_model(config).set_train(True)
    factors = draw_drop_path(config.model.drop_path_rates, len(IMAGES), np.random.default_rng(1))
    assert (factors == 0).any()

    def loss(images, drop_path):
        return ops.logsumexp(network(images, drop_path), -1).mean()

    differentiated = ms.value_and_grad(loss, None, network.trainable_params())
    value, gradients = differentiated(Tensor(IMAGES), Tensor(factors))
    return [value.asnumpy(), *(gradient.asnumpy() for gradient in gradients)]


def test_recomputation_changes_neither_loss_nor_gradients():
    """With drop path and dropout on: the masks are drawn again from the same counter."""
    for recomputed, plain in zip(loss_and_gradients(True), loss_and_gradients(False)):
        np.testing.assert_allclose(recomputed, plain, rtol=1e-5, atol=1e-7)
