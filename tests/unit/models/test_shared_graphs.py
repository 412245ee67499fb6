"""Blocks that are alike are parsed once, blocks that differ are not mixed up, and training is the same to the bit."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from mindspore._extends.parse import parser

from focal.config import load_config
from focal.data.transforms.drop_path import draw_drop_path
from focal.models import create_model
from focal.models.focal_transformer import FocalBlock
from focal.models.inference import fold_position_bias
from focal.models.precision import apply_precision
from focal.models.shared_graphs import LARGE_BYTES, SharesGraph, graph_digest
from focal.trainers.losses import SoftTargetCrossEntropy
from focal.trainers.optimizer import create_optimizer
from focal.trainers.train_one_step import TrainOneStep, trained_parameters
from tests.numerics.reference_cases import case_config

VERSIONS = pytest.mark.parametrize("case", ["nano_v1", "nano_v2"])
DEPTHS = [1, 1, 4, 1]


def network_of(case, **changes):
    network = create_model(case_config(case, depths=DEPTHS, **{"use_shift": False, "drop_path_rate": 0.3, **changes}))
    return network.set_train()


def digests(network, stage=2):
    return [graph_digest(block) for block in network.layers[stage].blocks]


def without_sharing(monkeypatch):
    """MindSpore parses every Cell by itself if it has no such attribute."""
    monkeypatch.setattr(SharesGraph, "cell_init_args", property(lambda self: self._no_such_attribute))


def train(**changes):
    """Three steps of three blocks, the last two of which are alike: outputs (3, len(OUTPUTS)), and the state after."""
    stage = {"depths": [3], "num_heads": [2], "focal_levels": [2], "focal_windows": [3], "expand_sizes": [1]}
    keys = {"embed_dim": 16, "window_size": 4, "focal_stages": [0], "focal_topK": 16, "num_classes": 4}
    recipe = {"drop_path_rate": 0.3, "optimizer": "adamw", "device_target": "CPU", "amp_level": "O0"}
    config = load_config({**stage, **keys, **recipe, "image_size": 32, **changes})
    network = create_model(config)
    optimizer = create_optimizer(trained_parameters(network), config.optim, config.model, np.full(10, 1e-3))
    step = TrainOneStep(network, SoftTargetCrossEntropy(), optimizer, config.step)
    random = np.random.default_rng(0)
    images = random.standard_normal((2, 3, 32, 32)).astype(np.float32)
    targets, drop_path = np.eye(4, dtype=np.float32)[:2], draw_drop_path(config.model.drop_path_rates, 2, random)
    rows = [step(*map(Tensor, (images, targets, drop_path))).asnumpy() for _ in range(3)]
    return np.array(rows), {parameter.name: parameter.asnumpy() for parameter in step.get_parameters()}


@pytest.fixture
def parsed(monkeypatch):
    """The blocks (their ids) that MindSpore reads the source of, some of them more than once."""
    blocks = set()
    initialize = parser.Parser.__init__

    def spy(self, function, *arguments, **keywords):
        owner = getattr(function, "__self__", function)
        if isinstance(owner, FocalBlock):
            blocks.add(id(owner))
        initialize(self, function, *arguments, **keywords)

    monkeypatch.setattr(parser.Parser, "__init__", spy)
    return blocks


@pytest.mark.parametrize(
    "keys",
    [{"arch": "focal_own", "recompute": True}, {"arch": "focalv2_own"}],
    ids=["version 1, recompute", "version 2"],
)
def test_training_is_the_same_to_the_bit_but_blocks_that_are_alike_are_parsed_once(keys, parsed, monkeypatch):
    rows, state = train(**keys)
    assert len(parsed) == 2
    parsed.clear()
    without_sharing(monkeypatch)
    expected_rows, expected_state = train(**keys)
    assert len(parsed) == 3
    np.testing.assert_array_equal(rows, expected_rows)
    assert rows[0, 1] != rows[2, 1], "the weights have moved"
    assert list(state) == list(expected_state)
    for name, expected in expected_state.items():
        np.testing.assert_array_equal(state[name], expected, err_msg=name)


@VERSIONS
def test_blocks_of_a_stage_are_alike_whatever_their_weights_and_drop_path_rates(case):
    network = network_of(case)
    assert len(set(digests(network))) == 1
    assert len({digests(network, stage)[0] for stage in range(4)}) == 4
    assert digests(network) == digests(network), "the digest of a Cell does not change by itself"
    before = digests(network)
    weight = network.layers[2].blocks[1].mlp.fc1.weight
    weight.set_data(Tensor(weight.asnumpy() + 1))
    assert digests(network) == before


CHANGES = {
    "form": lambda block: setattr(block.mlp.act, "for_ascend", True),
    "number": lambda block: setattr(block.attn.windowed_products, "scale", 0.5),
    "number format": lambda block: block.mlp.fc1.to_float(ms.float16),
    "evaluation": lambda block: block.set_train(False),
    "evaluation of a child": lambda block: setattr(block.mlp, "training", False),
    "recomputation of a child": lambda block: block.mlp.recompute(),
    "no drop path": lambda block: setattr(block.drop_path1, "drops", False),
    "constant": lambda block: setattr(block, "is_token", Tensor(np.ones((1, 4, 1), np.float32))),
    "operator": lambda block: setattr(block.attn.windowed_products, "softmax", ms.ops.Softmax(-2)),
    "untrained weight": lambda block: setattr(block.norm1.gamma, "requires_grad", False),
    "child": lambda block: block.insert_child_to_cell("extra", ms.nn.Identity()),
    "object": lambda block: setattr(block, "unknown", object()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_shapes_a_blocks_graph_tells_it_from_the_others(change):
    network = network_of("nano_v2")
    change(network.layers[2].blocks[2])
    first, second, changed, last = digests(network)
    assert first == second == last != changed


def test_blocks_that_see_other_keys_or_drop_attention_weights_do_not_share():
    shifted = digests(network_of("nano_v1", use_shift=True, image_size=128))
    assert shifted[0] == shifted[2] != shifted[1] == shifted[3]
    assert len(set(digests(network_of("nano_v2", attn_drop_rate=0.1)))) == DEPTHS[2]
    network = network_of("nano_v2")
    stage = network.layers[2]
    attention = stage.blocks[2].attn
    stage.builder.use_indices(attention, [level[:, ::-1][:, :-1] for level in stage.builder.own_indices()])
    first, second, changed, last = digests(network)
    assert first == second == last != changed


def test_a_folded_bias_keeps_blocks_apart_and_a_common_precision_does_not():
    network = network_of("nano_v2")
    apply_precision(network, "O2")
    assert len(set(digests(network))) == 1
    fold_position_bias(network.set_train(False))
    assert len(set(digests(network))) == DEPTHS[2]


def test_blocks_share_in_training_only():
    network = network_of("nano_v2")
    block = network.layers[0].blocks[0]
    assert block.cell_init_args == f"lazy_inline_{graph_digest(block)}"
    assert block.no_inline is False
    network.set_train(False)
    assert not hasattr(block, "cell_init_args")


def test_large_constants_are_alike_only_if_they_are_the_same_object():
    cells = [ms.nn.Identity() for _ in range(3)]
    table = np.zeros(LARGE_BYTES, np.int32)
    cells[0].table, cells[1].table, cells[2].table = table, table, table.copy()
    first, same, copy = map(graph_digest, cells)
    assert first == same != copy
