"""Which part of the network each operator of a compiled graph belongs to, and what each part costs.

MindSpore names a scope for every operator, and for a gradient the forward operator that it is of, but equal blocks
share both: additions and transposes of the last stage can be filed under the first. So parts come from the flow of
data:

- forward: an operator belongs to the last block, in the network's order, whose parameters it depends on;
- backward: to the last block whose parameters' gradients depend on it;
- both only if parameters of that block are still to come, or if the lines of code that it comes from pass through the
  `construct` of a block; else it stands between blocks. A sum of gradients has no such lines: it goes with the value
  that it belongs to;
- update: what follows the gradients: unscale, finite check, clip, optimizer, EMA.

What these do not settle is `unattributed`, and shown as such.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Optional

from tools.graph_report.counts import Operator, parse_graph
from tools.graph_report.dump import REPOSITORY, Graph

PHASES = FORWARD, BACKWARD, UPDATE = "forward", "backward", "update"
UNATTRIBUTED = "unattributed"
STEM, HEAD, LOSS = "patch_embed", "head", "loss"
AFTER = 10**6  # place of what follows all blocks of a stage, or all stages

_GRADIENT_NOTE = "forward_unique_id: "
_FRAME = re.compile(r"# In file .*?(src/focal/[\w/]+\.py):(\d+)~(\d+), ")
_BLOCK = re.compile(r"layers\.(\d+)\.blocks\.(\d+)\.")
_DOWNSAMPLE = re.compile(r"layers\.(\d+)\.downsample\.")
_COPIES = ("InplaceCopy", "Assign")
_ORDERING = ("UpdateState", "Load")  # their inputs say when a parameter is read, not what flows


class Attribution:
    """Phase and part of every operator of a graph.

    Args:
        operators: of the graph, in order.

    Attributes:
        phases, parts: by the operator's number in the graph. A part is patch_embed, layers.S.blocks.B,
            layers.S (its reorderings and downsampling), head, loss, update or unattributed.
    """

    def __init__(self, operators: Sequence[Operator]) -> None:
        self.operators = operators
        self.by_number = {operator.result: operator for operator in operators}
        self.inputs = {operator.result: self._data_inputs(operator) for operator in operators}
        self.users: dict[str, list[str]] = {operator.result: [] for operator in operators}
        for operator in operators:
            for number in self.inputs[operator.result]:
                self.users[number].append(operator.result)
        self.gradients = {o.result for o in operators if _GRADIENT_NOTE in o.arguments}
        self.phases = self._find_phases()
        self.parts: dict[str, str] = {}
        self._attribute_forward()
        self._attribute_backward()

    def _data_inputs(self, operator: Operator) -> tuple[str, ...]:
        if operator.name in _ORDERING:
            return ()
        known = (number for number in operator.inputs if number in self.by_number)
        return tuple(number for number in known if self.by_number[number].name != "UpdateState")

    def _find_phases(self) -> dict[str, str]:
        after_gradients, before_gradients = set(self.gradients), set()
        for operator in self.operators:  # a graph lists inputs before their users
            if any(number in after_gradients for number in self.inputs[operator.result]):
                after_gradients.add(operator.result)
        for operator in reversed(self.operators):
            if any(user in before_gradients or user in self.gradients for user in self.users[operator.result]):
                before_gradients.add(operator.result)
        phases = {}
        for operator in self.operators:
            number = operator.result
            if number in self.gradients or (number in after_gradients and number in before_gradients):
                phases[number] = BACKWARD
            else:
                phases[number] = FORWARD if number in before_gradients or not self.gradients else UPDATE
        return phases

    def _attribute_forward(self) -> None:
        forward = [operator for operator in self.operators if self.phases[operator.result] == FORWARD]
        latest: dict[str, Optional[tuple[int, int]]] = {}  # the last place whose parameters an operator depends on
        for operator in forward:
            places = [place for name in operator.parameters if (place := _place(name)) is not None]
            behind = [latest.get(number) for number in self.inputs[operator.result]]
            latest[operator.result] = max([*places, *filter(None, behind)], default=None)
        for operator in reversed(forward):  # what depends on no parameter belongs where it is first used
            if latest[operator.result] is None:
                ahead = [latest.get(user) for user in self.users[operator.result] if self.phases[user] == FORWARD]
                latest[operator.result] = min(filter(None, ahead), default=None)
        ahead = self._next_places(forward, latest)
        for operator in forward:
            place = latest[operator.result]
            inside = place is not None and ahead[operator.result] == place
            self.parts[operator.result] = _part(operator, place, inside)

    def _next_places(self, forward: Sequence[Operator], latest: dict) -> dict[str, Optional[tuple[int, int]]]:
        """Operator -> the first place whose parameters meet, at it or after it, the data that it yields."""
        only_parameters: set[str] = set()
        ahead: dict[str, Optional[tuple[int, int]]] = {}
        for operator in forward:
            behind, own = self.inputs[operator.result], [_place(name) for name in operator.parameters]
            if None not in own and (own or behind) and all(number in only_parameters for number in behind):
                only_parameters.add(operator.result)
        for operator in reversed(forward):
            number = operator.result
            places = [ahead.get(user) for user in self.users[number]]
            if number not in only_parameters:
                places += [latest[other] for other in self.inputs[number] if other in only_parameters]
            ahead[number] = min(filter(None, places), default=None)
        return ahead

    def _attribute_backward(self) -> None:
        latest = self._places_of_gradients()
        for operator in reversed(self.operators):
            number = operator.result
            if self.phases[number] == UPDATE:
                self.parts[number] = UPDATE
            elif self.phases[number] == BACKWARD:
                ahead = [latest.get(user) for user in self.users[number] if self.phases[user] == BACKWARD]
                latest[number] = max(filter(None, [latest.get(number), *ahead]), default=None)
                self.parts[number] = _part(operator, latest[number])

    def _places_of_gradients(self) -> dict[str, Optional[tuple[int, int]]]:
        """Operator that yields a parameter's gradient -> where that parameter is used.

        Gradients are copied into vectors, one per bucket (focal/trainers/buckets.py), in the order in which the
        parameters get their new values at the end.
        """
        names = [o.parameters[0] for o in self.operators if o.name in _COPIES and o.parameters]
        names = [name for name in names if not name.startswith("loss_scale.")]
        updates = [o for o in self.operators if o.name == "AdamWeightDecay"]
        gradients = [number for update in updates for number in self._gradients_of_bucket(update)]
        assert len(names) == len(gradients), f"{len(gradients)} gradients for {len(names)} parameters"
        places: dict[str, Optional[tuple[int, int]]] = {}
        for name, number in zip(names, gradients):
            while self.phases[number] == UPDATE and self.inputs[number]:  # through reshapes and casts
                number = self.inputs[number][0]
            if self.phases[number] == BACKWARD and _place(name) is not None:
                places[number] = max(filter(None, [_place(name), places.get(number)]))
        return places

    def _gradients_of_bucket(self, update: Operator) -> tuple[str, ...]:
        """What the gradient vector of an update is made of, in order."""
        shape, number = update.tensors_in[0][1], update.result
        while self.by_number[number].name != "Concat":  # back through what scales and clips
            number = next(other for other in self.inputs[number] if _has_shape(self.by_number[other], shape))
        return self.inputs[self.inputs[number][0]]  # of the tuple that is concatenated


def _has_shape(operator: Operator, shape: tuple[int, ...]) -> bool:
    return any(found == shape for _, found in operator.tensors_out)


def _place(parameter: str) -> Optional[tuple[int, int]]:
    """Where in the network's order a parameter is used: (stage, block); the stem is stage -1."""
    found = _BLOCK.match(parameter)
    if found:
        return int(found[1]), int(found[2])
    found = _DOWNSAMPLE.match(parameter)
    if found:
        return int(found[1]), AFTER
    if parameter.startswith((STEM, "absolute_pos_embed")):
        return -1, 0
    return (AFTER, 0) if parameter.startswith(("head.", "norm.")) else None


def _part(operator: Operator, place: Optional[tuple[int, int]], inside: bool = False) -> str:
    """The part of an operator at a place; `inside`: it stands between parameters of that place for certain."""
    constructs = code_of(operator)
    if "NetworkWithLoss.construct" in constructs and "FocalTransformer.construct" not in constructs:
        return LOSS
    if place is None:
        return UNATTRIBUTED
    stage, block = place
    is_block = 0 <= stage < AFTER and block < AFTER
    if "FocalBlock.construct" in constructs or (inside and is_block):
        return f"layers.{stage}.blocks.{block}" if is_block else UNATTRIBUTED
    if is_block and not constructs and operator.name == "AddN":
        return f"layers.{stage}.blocks.{block}"
    if stage < 0:
        return STEM
    return HEAD if stage == AFTER else f"layers.{stage}"


def code_of(operator: Operator) -> tuple[str, ...]:
    """Methods of ours, as Class.method, whose code the operator comes from, outermost first."""
    names = []
    for note in operator.notes:
        frame = _FRAME.match(note)
        if frame:
            names.append(_methods(frame[1]).get(int(frame[2]), ""))
    return tuple(filter(None, names))


@cache
def _methods(path: str) -> dict[int, str]:
    """First line -> Class.method of a source file."""
    tree = ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))
    return {
        method.lineno: f"{node.name}.{method.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for method in node.body
        if isinstance(method, ast.FunctionDef)
    }


@dataclass
class PartCost:
    """What a part of the network costs in one phase: operators that do work, their operations and bytes."""

    operators: int = 0
    operations: float = 0.0
    bytes: float = 0.0

    def add(self, operator: Operator) -> None:
        self.operators += 1
        self.operations += operator.operations
        self.bytes += operator.read + operator.written


def report(graph: Graph, mode: str) -> dict[str, Any]:
    """The figures of a graph.

    Returns:
        arch, batch_size, mode; `histogram`: number of operators per phase and name; `parts`: per phase and part the
        operators that do work (not reshapes and other bookkeeping), floating-point operations of matrix products and
        convolutions, and bytes read and written; `total`: their sums.
    """
    attribution = Attribution(parse_graph(graph.text))
    histogram: dict[str, Counter[str]] = {}
    parts: dict[str, dict[str, PartCost]] = {}
    total = PartCost()
    for phase in PHASES:
        if phase in attribution.phases.values():
            histogram[phase], parts[phase] = Counter(), {}
    for operator in attribution.operators:
        if operator.kind == "free":
            continue
        phase, part = attribution.phases[operator.result], attribution.parts[operator.result]
        histogram[phase][operator.name] += 1
        parts[phase].setdefault(part, PartCost()).add(operator)
        total.add(operator)
    return {
        "arch": graph.arch,
        "batch_size": graph.batch_size,
        "mode": mode,
        "histogram": {phase: dict(found.most_common()) for phase, found in histogram.items()},
        "parts": {
            phase: {part: asdict(found[part]) for part in sorted(found, key=_order)} for phase, found in parts.items()
        },
        "total": asdict(total),
    }


def _order(part: str) -> tuple[int, int, int, str]:
    """Parts in the network's order."""
    numbers = [int(number) for number in part.split(".") if number.isdigit()]
    group = {STEM: 0, "layers": 1, HEAD: 2, LOSS: 3}.get(part.split(".")[0], 4)
    return (group, *(numbers + [AFTER, AFTER])[:2], part)


def as_markdown(result: dict[str, Any]) -> str:
    """A report as two tables."""
    lines = [f"### {result['arch']}, {result['mode']}, batch {result['batch_size']}", ""]
    phases = list(result["histogram"])
    names = Counter()
    for found in result["histogram"].values():
        names.update(found)
    lines += ["| operator | " + " | ".join(phases) + " |", "| --- |" + " ---: |" * len(phases)]
    for name, _ in names.most_common():
        counts = [str(result["histogram"][phase].get(name, "")) for phase in phases]
        lines.append(f"| {name} | " + " | ".join(counts) + " |")
    lines += ["", "| phase | part | operators | G operations | MB moved |", "| --- | --- | ---: | ---: | ---: |"]
    for phase, found in result["parts"].items():
        for part, cost in found.items():
            lines.append(f"| {phase} | {part} | {_cost(cost)} |")
    return "\n".join([*lines, f"| all | all | {_cost(result['total'])} |", ""])


def _cost(cost: dict[str, Any]) -> str:
    return f"{cost['operators']:,} | {cost['operations'] / 1e9:,.3f} | {cost['bytes'] / 1e6:,.1f}"


def save(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Write reports as JSON: a list of what `report` returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(results), indent=1) + "\n", encoding="utf-8")
