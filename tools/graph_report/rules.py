"""What the compiled graph must not contain, for the sake of an Ascend; docs/graph.md says what each rule is for.

Every rule takes the graph and returns its violations, one line each; none: the rule is kept. Compile for a batch that
divides no size of the network (a large prime): then a tensor holds activations if and only if one of its sizes is a
multiple of the batch.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from tools.graph_report.counts import GATHER, MATRIX, Operator, parse_graph
from tools.graph_report.dump import Graph
from tools.graph_report.report import BACKWARD, Attribution, code_of

TRANSPOSES_PER_BLOCK = 2
_EXPANDED_GATHER = re.compile(r"GatherD|GatherNd|TakeAlong|GatherElements|MaskedSelect")
_SCATTER = re.compile(r"Scatter|SegmentSum|IndexAdd|IndexPut|GatherDGrad|EmbeddingDenseBackward")
_SLICE = re.compile(r"StridedSlice")
_TRANSPOSE = re.compile(r"Transpose|Permute")
_BIAS_PARAMETER = re.compile(r"relative_position_bias_table|coord2rpb_all")
_COORDINATE_LAYER = re.compile(r"layers\.(\d+)\.blocks\.(\d+)\.attn\.coord2rpb_all\.(\d+)\.0\.weight$")


class CheckedGraph:
    """A graph, parsed and attributed.

    Args:
        graph: compiled.
    """

    def __init__(self, graph: Graph) -> None:
        self.batch = graph.batch_size
        self.operators = parse_graph(graph.text)
        self.attribution = Attribution(self.operators)

    def is_activation(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this shape holds a value per image."""
        return any(size and size % self.batch == 0 for size in shape)

    def touches_activations(self, operator: Operator) -> bool:
        """Whether any of its tensors does."""
        return any(self.is_activation(shape) for _, shape in (*operator.tensors_in, *operator.tensors_out))

    def describe(self, operator: Operator) -> str:
        """One line for a violation."""
        types = " ".join(f"{dtype}{list(shape)}" for dtype, shape in operator.tensors_in)
        return f"{operator.result} {operator.name}({types}), {self.place(operator)}"

    def place(self, operator: Operator) -> str:
        """Phase and part of an operator."""
        return f"{self.attribution.phases[operator.result]} of {self.attribution.parts[operator.result]}"


def expanded_gathers(graph: CheckedGraph) -> list[str]:
    """Gathers by an index with an entry for each number of the result, not for each row."""
    found = []
    for operator in graph.operators:
        index = operator.tensors_in[1][1] if operator.name in GATHER and len(operator.tensors_in) > 1 else ()
        if _EXPANDED_GATHER.search(operator.name) or len(index) > 1:
            found.append(graph.describe(operator))
    return found


def scatters(graph: CheckedGraph) -> list[str]:
    """Scatters, except that into a bias table: rows as wide as the heads, nothing of it growing with the batch."""
    found = []
    for operator in graph.operators:
        if not _SCATTER.search(operator.name):
            continue
        is_bias = graph.attribution.phases[operator.result] == BACKWARD and (
            "FocalAttention.gather_bias" in code_of(operator) and len(operator.tensors_out[0][1]) == 2
        )
        if not is_bias or graph.touches_activations(operator):
            found.append(graph.describe(operator))
    return found


def slices(graph: CheckedGraph) -> list[str]:
    """StridedSlice, and its gradient, on activations."""
    return [
        graph.describe(operator)
        for operator in graph.operators
        if _SLICE.search(operator.name) and graph.touches_activations(operator)
    ]


def wide_types(graph: CheckedGraph) -> list[str]:
    """Tensors of 64-bit numbers."""
    return [
        graph.describe(operator)
        for operator in graph.operators
        if any(dtype.endswith("64") for dtype, _ in (*operator.tensors_in, *operator.tensors_out))
    ]


def dynamic_shapes(graph: CheckedGraph) -> list[str]:
    """Tensors of which a size is only known when the graph runs."""
    return [
        graph.describe(operator)
        for operator in graph.operators
        if any(size < 0 for _, shape in (*operator.tensors_in, *operator.tensors_out) for size in shape)
    ]


def transposes(graph: CheckedGraph) -> dict[str, int]:
    """Transposes of activations per phase and part, but for those that only matrix products read, which absorb them."""
    counts: Counter[str] = Counter()
    by_number = graph.attribution.by_number
    for operator in graph.operators:
        if _TRANSPOSE.search(operator.name) and graph.touches_activations(operator):
            users = graph.attribution.users[operator.result]
            if not users or any(by_number[user].name not in MATRIX for user in users):
                counts[graph.place(operator)] += 1
    return dict(counts)


def block_transposes(graph: CheckedGraph) -> list[str]:
    """Blocks with more transposes of activations than `TRANSPOSES_PER_BLOCK` in one direction."""
    return [
        f"{count} transposes in {place}"
        for place, count in transposes(graph).items()
        if (".blocks." in place or "unattributed" in place) and count > TRANSPOSES_PER_BLOCK
    ]


def coordinate_rows(graph: CheckedGraph) -> dict[tuple[int, int, int], int]:
    """(stage, block, level) -> rows that the first layer of the relative position MLP is applied to."""
    rows = {}
    by_number = graph.attribution.by_number
    for operator in graph.operators:
        if operator.name not in MATRIX or graph.attribution.phases[operator.result] != "forward":
            continue
        for name in _parameters_read(operator, by_number):
            layer = _COORDINATE_LAYER.search(name)
            if layer:
                rows[tuple(int(part) for part in layer.groups())] = operator.tensors_out[0][1][0]
    return rows


def _parameters_read(operator: Operator, by_number: Mapping[str, Operator]) -> list[str]:
    """Parameters that an operator reads, itself or through operators that move or convert them."""
    names = list(operator.parameters)
    for number in operator.inputs:
        before = by_number.get(number)
        if before is not None and (before.kind == "free" or before.name == "Cast"):
            names += _parameters_read(before, by_number)
    return names


def repeated_coordinates(graph: CheckedGraph, distinct: Mapping[tuple[int, int, int], int]) -> list[str]:
    """Relative position MLPs applied to more rows than there are distinct coordinates, or to none.

    Args:
        graph: of a training step.
        distinct: number of distinct coordinates by (stage, block, level).
    """
    rows = coordinate_rows(graph)
    return [
        f"stage {place[0]}, block {place[1]}, level {place[2]}: {rows.get(place)} rows, {count} distinct coordinates"
        for place, count in distinct.items()
        if rows.get(place) != count
    ]


def bias_operators(graph: CheckedGraph) -> list[str]:
    """Operators that compute the position bias: none where it is a constant."""
    return [
        graph.describe(operator)
        for operator in graph.operators
        if "FocalAttention.gather_bias" in code_of(operator) or any(map(_BIAS_PARAMETER.search, operator.parameters))
    ]


# What holds for every graph, inference, export or training.
RULES = {
    "expanded gathers": expanded_gathers,
    "scatters": scatters,
    "strided slices": slices,
    "64-bit tensors": wide_types,
    "dynamic shapes": dynamic_shapes,
    "transposes": block_transposes,
}
