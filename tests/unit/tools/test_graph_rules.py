"""The graph bars for Ascend: kept by both versions, and broken by a network that does what they forbid.

What a rule is for stands in the docstring of its test, and at length in docs/graph.md.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from focal.config import load_config
from focal.models.focal_keys import StageMap, relative_coordinates, topk_closest_indices
from tests.unit.tools.graph_settings import BATCH, NANO_V1, NANO_V2
from tools.graph_report import rules as graph_bars
from tools.graph_report.counts import GATHER
from tools.graph_report.dump import REPOSITORY, Graph, GraphRequest, dump_environment, dump_graphs
from tools.graph_report.rules import CheckedGraph

FOCAL_FAST_TINY = REPOSITORY / "configs" / "focalv2_tiny_useconv_patch4_window7_224.yaml"
NANO = [(name, mode) for name in ("v1", "v2") for mode in ("infer", "train", "export")]
each_nano_graph = pytest.mark.parametrize("key", NANO, ids="-".join)


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], CheckedGraph]:
    """Graphs of both versions as an Ascend gets them, by (version, mode); drop path on, version 1 with shift."""
    settings = {"v1": NANO_V1, "v2": NANO_V2}
    requests = [GraphRequest(settings[name], mode, BATCH, for_ascend=True) for name, mode in NANO]
    graphs = dump_graphs(requests, tmp_path_factory.mktemp("graphs"))
    return {key: CheckedGraph(graph) for key, graph in zip(NANO, graphs)}


@pytest.fixture(scope="module")
def forbidden(tmp_path_factory: pytest.TempPathFactory) -> CheckedGraph:
    """Training graph of a network that breaks the bars."""
    folder = tmp_path_factory.mktemp("forbidden")
    command = [sys.executable, "-m", "tests.unit.tools.forbidden_network"]
    done = subprocess.run(command, cwd=folder, env=dump_environment(folder), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    path = Path(done.stdout.strip().splitlines()[-1])
    return CheckedGraph(Graph(path.read_text(encoding="utf-8"), "forbidden", BATCH))


def distinct_coordinates(settings: object, **overrides: object) -> dict[tuple[int, int, int], int]:
    """Number of distinct relative coordinates of version 2 by (stage, block, level), from the geometry alone."""
    model = load_config(settings, overrides).model
    counts = {}
    side = model.image_hw[0] // 4
    for stage, depth in enumerate(model.depths):
        stage_map = StageMap.create(side >> stage, side >> stage, model.window_size)
        for level in range(model.focal_levels[stage]):
            indices = topk_closest_indices(stage_map, level, model.focal_topK)
            pairs = relative_coordinates(stage_map, level, indices).reshape(-1, 2)
            distinct = len(np.unique(pairs, axis=0))
            # Or the bar would say nothing; a single window with a single key has no pair twice.
            assert distinct < len(pairs) or indices.size == 1
            counts.update({(stage, block, level): distinct for block in range(depth)})
    return counts


@each_nano_graph
def test_no_gather_has_an_index_for_each_number(nano, key):
    """GatherD and its like read an index per number, not per row: as many bytes of index as of data, and no burst.

    The report's code gathered that way, at 17 images a second and card.
    """
    assert any(operator.name in GATHER for operator in nano[key].operators)  # there are gathers to judge
    assert graph_bars.expanded_gathers(nano[key]) == []


@each_nano_graph
def test_no_scatter_works_on_activations(nano, key):
    """A scatter adds in an order of its own: serial or atomic on an Ascend, and not repeatable.

    The bias table's alone is allowed: for each head a row of distinct positions, of the same size for any batch.
    """
    assert graph_bars.scatters(nano[key]) == []
    tables = [operator for operator in nano[key].operators if operator.name == "InplaceIndexAddExt"]
    assert len(tables) == (3 if key[1] == "train" else 0)  # one per block
    assert {operator.tensors_in[0][1][0] for operator in tables} <= {2, 4}  # heads


@each_nano_graph
def test_no_strided_slice_works_on_activations(nano, key):
    """StridedSlice copies number by number where split copies blocks; its gradient fills a whole tensor with zeros."""
    assert graph_bars.slices(nano[key]) == []


@each_nano_graph
def test_no_tensor_has_64_bits(nano, key):
    """An Ascend's vector unit has no 64-bit integers: operators on them run on its slow AI CPU, with copies around."""
    assert graph_bars.wide_types(nano[key]) == []


@each_nano_graph
def test_no_shape_is_dynamic(nano, key):
    """A shape known only at run time takes an operator out of the sunk graph: the host must wait, ask and start it."""
    assert graph_bars.dynamic_shapes(nano[key]) == []


@each_nano_graph
def test_blocks_have_few_transposes(nano, key):
    """A transpose moves all data and computes nothing, and memory sets the pace: two per block and direction at most.

    There are none in blocks; those of patch embeddings and downsamplings, between tokens and maps, are counted too.
    """
    assert graph_bars.block_transposes(nano[key]) == []
    counts = graph_bars.transposes(nano[key])
    assert not any(".blocks." in place or "unattributed" in place for place in counts)
    expected = {"forward of patch_embed": 1, "forward of layers.0": 2}
    if key[1] == "train":
        expected |= {"backward of patch_embed": 1, "backward of layers.0": 2}
    assert counts == expected


def test_the_position_mlp_runs_on_distinct_coordinates(nano):
    """Relative coordinates repeat over windows, queries and keys: an MLP over all pairs would do many times the work.

    The rows of its matrix products are as many as there are distinct coordinates.
    """
    distinct = distinct_coordinates(NANO_V2)
    assert len(distinct) == 6
    assert graph_bars.repeated_coordinates(nano["v2", "train"], distinct) == []


@pytest.mark.parametrize("mode", ["infer", "export"])
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_bias_is_a_constant(nano, version, mode):
    """Weights no longer change: tables, MLP and look-up of the bias would give the same numbers for every batch."""
    assert graph_bars.bias_operators(nano[version, mode]) == []


def test_forbidden_operators_are_caught(forbidden):
    """Each rule finds what it forbids, in the forward or the backward pass, in a network that has it."""
    gathers = graph_bars.expanded_gathers(forbidden)
    assert any("GatherD" in line and "forward of layers.0.blocks.0" in line for line in gathers), gathers
    scatters = graph_bars.scatters(forbidden)
    assert any("UnsortedSegmentSum" in line and "backward of layers.0.blocks.0" in line for line in scatters), scatters
    assert not any(f"[{1152}, 2]" in line for line in scatters)  # the bias table's stays allowed
    assert any("StridedSlice" in line for line in graph_bars.slices(forbidden))
    assert any("Int64" in line for line in graph_bars.wide_types(forbidden))
    counted = " ".join(graph_bars.block_transposes(forbidden))
    assert "6 transposes in forward of layers.0.blocks.0" in counted
    # MindSpore's gradient of a gather along the second axis transposes before and after its scatter.
    assert "10 transposes in backward of layers.0.blocks.0" in counted


def test_repeated_coordinates_are_caught(forbidden):
    distinct = {place: count for place, count in distinct_coordinates(NANO_V2).items() if place[:2] == (0, 0)}
    found = graph_bars.repeated_coordinates(forbidden, distinct)
    assert len(found) == 2 and f"{4 * distinct[0, 0, 0]} rows" in found[0]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_bias_that_is_computed_is_caught(nano, version):
    """Training computes it: the same rule finds it there."""
    found = " ".join(graph_bars.bias_operators(nano[version, "train"]))
    assert any(gather in found for gather in GATHER) and ("MatMul" in found) == (version == "v2")


def test_dynamic_shapes_are_caught():
    node = "  %0(n) = PrimFunc_NonZero(%para1_x) {attrs}\n"
    types = "      : (<Tensor[Bool], (101, 4)>) -> (<Tensor[Int64], (-1, 2)>)\n"
    graph = CheckedGraph(Graph(node + types, "dynamic", BATCH))
    assert graph_bars.dynamic_shapes(graph) == ["%0 NonZero(Bool[101, 4]), forward of unattributed"]
    assert len(graph_bars.wide_types(graph)) == 1


@pytest.mark.slow
def test_focal_fast_tiny_keeps_the_rules(tmp_path):
    """The same, for the smallest published network as it is trained (amp_level O1, drop path) and evaluated.

    Its stages have 2, 2, 6 and 2 equal blocks. Here they have one, and the third two: a block is judged by itself, and
    by what it follows.
    """
    config, depths = str(FOCAL_FAST_TINY), [1, 1, 2, 1]
    overrides = {"depths": depths, "mix_up": 0.0, "cutmix": 0.0}  # mixing would want an even batch
    modes = ("infer", "train")
    requests = [GraphRequest(config, mode, BATCH, for_ascend=True, overrides=overrides) for mode in modes]
    inference, training = map(CheckedGraph, dump_graphs(requests, tmp_path))
    for graph in (inference, training):
        assert {name: rule(graph) for name, rule in graph_bars.RULES.items()} == dict.fromkeys(graph_bars.RULES, [])
        assert not any(".blocks." in place for place in graph_bars.transposes(graph))
    assert graph_bars.bias_operators(inference) == []
    assert sum(operator.name == "InplaceIndexAddExt" for operator in training.operators) == sum(depths)
    assert graph_bars.repeated_coordinates(training, distinct_coordinates(config, depths=depths)) == []
