"""Attribution of operators to blocks: against graphs that differ by one block; the report and its script."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from focal.config import load_config
from focal.errors import UserError
from focal.models.macs import actual_macs
from tests.unit.tools.graph_settings import NANO_V2
from tools.graph_report.counts import parse_graph
from tools.graph_report.dump import REPOSITORY, Graph, GraphRequest, dump_graphs
from tools.graph_report.report import UNATTRIBUTED, Attribution, as_markdown, report, save

ONE_BLOCK = {**NANO_V2, "depths": [1, 1]}
MODES = ["infer", "train"]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Graph]:
    """By mode and number of blocks in the first stage, 1 or 2."""
    requests = [GraphRequest(config, mode, 4, for_ascend=True) for mode in MODES for config in (ONE_BLOCK, NANO_V2)]
    keys = [(mode, blocks) for mode in MODES for blocks in (1, 2)]
    return dict(zip(keys, dump_graphs(requests, tmp_path_factory.mktemp("graphs"))))


def network_operators(graph: Graph, part: str = "") -> Counter[tuple[str, Any]]:
    """Operators that do work in the forward and backward passes, of one part or all, by name and shapes.

    Without the one that takes the factors of drop path apart for all blocks together.
    """
    attribution = Attribution(parse_graph(graph.text))
    return Counter(
        (operator.name, operator.tensors_out)
        for operator in attribution.operators
        if operator.kind != "free"
        and not (operator.name == "SplitWithSize" and operator.tensors_out[0][1] == (1, 4))
        and attribution.phases[operator.result] != "update"
        and part in ("", attribution.parts[operator.result])
    )


@pytest.mark.parametrize("mode", MODES)
def test_a_block_gets_the_operators_that_it_adds_to_a_graph(graphs, mode):
    """The second block of the first stage (with drop path) is the difference between two blocks and one."""
    more, fewer = network_operators(graphs[mode, 2]), network_operators(graphs[mode, 1])
    block = network_operators(graphs[mode, 2], "layers.0.blocks.1")
    assert sum(block.values()) >= 20
    if mode == "train":  # the gradient of the first block's output becomes a sum, which counts for the first block
        block["AddN", (("Float32", (4, 64, 16)),)] += 1
    assert more - fewer == block
    assert not fewer - more


@pytest.mark.parametrize("mode", MODES)
def test_everything_is_attributed_and_equal_blocks_cost_the_same(graphs, mode):
    result = report(graphs[mode, 2], mode)
    for phase, parts in result["parts"].items():
        assert UNATTRIBUTED not in parts
        if phase != "update":
            assert parts["layers.0.blocks.0"]["operations"] == parts["layers.0.blocks.1"]["operations"] > 0
    assert sum(sum(names.values()) for names in result["histogram"].values()) == result["total"]["operators"]
    costs = [cost["bytes"] for parts in result["parts"].values() for cost in parts.values()]
    assert sum(costs) == result["total"]["bytes"]


def test_operations_are_the_models_own_count(graphs):
    """With the bias folded, nothing is left that the formula does not know."""
    expected = 2 * 4 * actual_macs(load_config(NANO_V2).model)
    assert report(graphs["infer", 2], "infer")["total"]["operations"] == pytest.approx(expected, rel=0.02)


def test_the_report_is_written_as_a_table_and_as_json(graphs, tmp_path):
    result = report(graphs["train", 2], "train")
    lines = as_markdown(result).splitlines()
    assert "| operator | forward | backward | update |" in lines
    histogram = result["histogram"]
    assert f"| Softmax | {histogram['forward']['Softmax']} |  |  |" in lines
    save([result], tmp_path / "new" / "graph.json")
    assert json.loads((tmp_path / "new" / "graph.json").read_text()) == [result]


def test_a_constant_over_several_lines_does_not_hide_an_operator():
    text = (
        "  %0(a) = PrimFunc_Add(%para1_x, Tensor(shape=[2, 1], dtype=Float32, value=\n[[1.0]\n [2.0]])) {attrs}\n"
        "      : (<Tensor[Float32], (2, 1)>, <Tensor[Float32], (2, 1)>) -> (<Tensor[Float32], (2, 1)>)\n"
        "      # In file x.py:1, 0~3/y/\n"
    )
    operator = parse_graph(text)[0]
    assert (operator.name, operator.parameters, len(operator.notes)) == ("Add", ("x",), 1)


def test_a_network_that_fails_to_compile_is_named(tmp_path):
    with pytest.raises(UserError, match=r"focalv2_nano: compiling the graph failed: .*depths"):
        dump_graphs([GraphRequest({**NANO_V2, "depths": [2]}, "infer")], tmp_path)


def test_the_script_refuses_a_missing_config():
    command = [sys.executable, str(REPOSITORY / "tools" / "graph_report"), "--config", "configs/none.yaml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert "config: configs/none.yaml does not exist; configs/ holds" in done.stderr
