"""Weights into a network: by exact name, with every difference named."""

from __future__ import annotations

import logging

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from focal.checkpoint.files import CheckpointError, write_checkpoint
from focal.checkpoint.official import is_buffer, learnable_parameters, official_buffers
from focal.checkpoint.weights import assign_weights, freeze_stages, load_weights, read_weights
from focal.errors import UserError
from focal.models import create_model
from tests.numerics.reference_cases import case_config


class Network(nn.Cell):
    """Parameters only, under official names."""

    def __init__(self, classes=3, value=0.0):
        super().__init__()
        shapes = {"patch_embed.proj.weight": (2, 3), "layers.0.blocks.0.norm1.weight": (4,),
                  "layers.10.blocks.0.norm1.weight": (4,), "layers.1.blocks.0.norm1.weight": (4,),
                  "head.weight": (classes, 4), "head.bias": (classes,)}  # fmt: skip
        self.weights = ms.ParameterTuple(
            [Parameter(Tensor(np.full(shape, value, np.float32)), name=name) for name, shape in shapes.items()]
        )
        self.random_counter = Parameter(Tensor(5, ms.int32), name="random_counter", requires_grad=False)


def values(network):
    return {parameter.name: parameter.asnumpy() for parameter in network.get_parameters()}


def arrays(classes=3, value=1.0):
    return {n: np.full_like(v, value) for n, v in values(Network(classes)).items() if n != "random_counter"}


def test_every_parameter_is_set_by_its_name():
    network = Network()
    report = assign_weights(network, arrays(), "x")
    assert len(report.loaded) == 6 and not report.reinitialised and not report.unexpected
    assert all((value == 1).all() for name, value in values(network).items() if name != "random_counter")
    assert values(network)["random_counter"] == 5


def test_a_name_that_only_ends_alike_does_not_match():
    weights = arrays()
    weights["module.head.bias"] = weights.pop("head.bias")
    with pytest.raises(UserError) as error:
        assign_weights(Network(), weights, "x.ckpt")
    message = str(error.value)
    assert "missing: head.bias" in message and "unexpected: module.head.bias" in message and "x.ckpt" in message
    assert "\n" not in message


def test_wrong_shapes_are_named_with_both_shapes():
    with pytest.raises(UserError, match=r"misshaped: head.weight \(7, 4\) for \(3, 4\), head.bias \(7,\) for \(3,\)"):
        assign_weights(Network(), arrays(7), "x")


def test_nothing_is_set_when_something_is_wrong():
    network = Network()
    with pytest.raises(UserError):
        assign_weights(network, arrays(7), "x")
    assert all((value == 0).all() for name, value in values(network).items() if name != "random_counter")


@pytest.mark.parametrize(
    "surplus",
    ["layers.0.blocks.1.norm1.weight", "layers.3.blocks.0.attn.qkv.weight", "layers.1.downsample.reduction.weight"],
)
def test_weights_of_a_deeper_network_are_refused(surplus):
    network = Network()
    weights = {"a_note": np.ones(1), **arrays(), surplus: np.ones((4, 4), np.float32)}
    for new_head in (False, True):
        with pytest.raises(UserError, match=f"unexpected: {surplus}, a_note\\); check arch, depths and image_size"):
            assign_weights(network, weights, "x.ckpt", new_head)
    assert (values(network)["head.bias"] == 0).all()


def test_what_another_image_size_leaves_over_is_reported_but_not_refused():
    attention = "layers.0.blocks.1.attn"
    over = [f"{attention}.relative_position_bias_table_to_neighbors", f"{attention}.valid_ind_rolled", "a_note",
            f"{attention}.relative_position_index_1", "layers.0.blocks.1.attn_mask"]  # fmt: skip
    report = assign_weights(Network(), {**arrays(), **{name: np.ones(1) for name in over}}, "x.ckpt")
    assert report.unexpected == tuple(over) and len(report.loaded) == 6


def test_every_buffer_of_the_authors_is_known_by_name():
    for case in ("nano_v1", "nano_v2"):
        network = create_model(case_config(case))
        buffers, parameters = official_buffers(network), learnable_parameters(network)
        assert buffers and all(map(is_buffer, buffers)) and not any(map(is_buffer, parameters))


def test_fine_tuning_leaves_a_head_of_other_classes_as_initialised():
    network = Network(classes=3, value=0.5)
    report = assign_weights(network, arrays(1000), "x", new_head=True)
    assert report.reinitialised == ("head.weight", "head.bias")
    assert "left as initialised" in str(report) and "head.weight" in str(report)
    found = values(network)
    assert (found["head.weight"] == 0.5).all() and (found["patch_embed.proj.weight"] == 1).all()
    wrong_body = arrays(1000)
    wrong_body["layers.0.blocks.0.norm1.weight"] = np.ones(9, np.float32)
    with pytest.raises(UserError, match="layers.0.blocks.0.norm1.weight"):
        assign_weights(network, wrong_body, "x", new_head=True)


def test_fine_tuning_does_without_a_head_but_not_without_half_of_one():
    """Weights of a backbone have no head; the log does not blame the number of classes."""
    network = Network(value=0.5)
    body = {name: value for name, value in arrays().items() if not name.startswith("head.")}
    report = assign_weights(network, body, "x", new_head=True)
    assert report.absent == ("head.weight", "head.bias") and report.reinitialised == ()
    assert str(report) == "4 tensors loaded; not among the weights and left as initialised: head.weight, head.bias"
    assert (values(network)["head.weight"] == 0.5).all()
    with pytest.raises(UserError, match="missing: head.bias;|missing: head.bias\\)"):
        assign_weights(network, {**body, "head.weight": arrays()["head.weight"]}, "x", new_head=True)
    with pytest.raises(UserError, match="missing: head.weight, head.bias"):
        assign_weights(network, body, "x")


def test_own_checkpoints_hold_raw_and_ema_weights(tmp_path):
    path = str(tmp_path / "a.ckpt")
    state = {**arrays(value=1.0), "optimizer.step": np.int32(3), "loss_scale.value": np.float32(2)}
    state.update({f"ema.{name}": np.full_like(value, 2) for name, value in arrays().items() if "patch" not in name})
    state.update({f"moment1.{name}": value for name, value in arrays(value=9.0).items()})
    write_checkpoint(tmp_path / "a.ckpt", state, {})
    for use_ema, head, stem in ((False, 1.0, 1.0), (True, 2.0, 1.0)):
        network = Network()
        load_weights(network, path, use_ema)
        assert (values(network)["head.weight"] == head).all()
        assert (values(network)["patch_embed.proj.weight"] == stem).all(), "no average: frozen, so as it is"
    assert set(read_weights(path)) == set(arrays())


def test_ema_weights_that_are_not_there_are_refused(tmp_path):
    write_checkpoint(tmp_path / "a.ckpt", arrays(), {})
    with pytest.raises(CheckpointError, match="holds no EMA weights"):
        read_weights(str(tmp_path / "a.ckpt"), use_ema=True)


def test_freezing_takes_the_stem_and_whole_stages():
    network = Network()
    assert freeze_stages(network, 0) == []
    frozen = freeze_stages(network, 2)
    assert frozen == ["patch_embed.proj.weight", "layers.0.blocks.0.norm1.weight", "layers.1.blocks.0.norm1.weight"]
    trained = [parameter.name for parameter in network.trainable_params()]
    assert trained == ["layers.10.blocks.0.norm1.weight", "head.weight", "head.bias"]


def test_a_checkpoint_kept_for_its_ema_weights_says_so_when_raw_weights_are_taken(tmp_path, caplog):
    path = tmp_path / "best.ckpt"
    both = {**arrays(), **{f"ema.{name}": value for name, value in arrays(value=2.0).items()}}
    write_checkpoint(path, both, {"best_is_ema": True})
    logging.getLogger("focal").propagate = True
    read_weights(str(path), use_ema=True)
    assert not caplog.text
    read_weights(str(path))
    assert "kept for its EMA weights, but its raw weights are loaded; see --use_ema True" in caplog.text
