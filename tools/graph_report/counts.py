"""Operators, floating-point operations and bytes of a compiled graph, read from MindSpore's own dump of it.

graph_dump.py makes the dump; graph_report.py says which part of the network an operator belongs to.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from focal.errors import UserError
from tools.graph_report.dump import GraphRequest, dump_graphs

MATRIX = ("MatMul", "BatchMatMul", "MatMulExt", "BatchMatMulExt", "Dense")
CONVOLUTION = ("Conv2D", "Conv2DBackpropInput", "Conv2DBackpropFilter", "Conv2DExt", "ConvolutionGrad")
GATHER = ("Gather", "IndexSelect")  # of whole rows
MOVEMENT = (*GATHER, "Transpose", "Concat", "SplitWithSize", "Split", "StridedSlice", "StridedSliceGrad",
            "Tile", "SliceExt", "BroadcastTo", "Roll", "Pad", "PadV3", "UnsortedSegmentSum", "GatherD",
            "GatherDGradV2", "InplaceIndexAddExt", "Zeros")  # fmt: skip
REDUCTION = ("LayerNorm", "LayerNormGrad", "GroupNorm", "GroupNormGrad", "Softmax", "SoftmaxBackward", "SoftmaxGrad",
             "LogSoftmax", "LogSoftmaxGrad", "ReduceSum", "ReduceMean", "SumExt", "MeanExt", "ReduceMax", "BiasAddGrad",
             "SparseSoftmaxCrossEntropyWithLogits", "LayerNormExt", "LayerNormGradExt")  # fmt: skip
OPTIMIZER = ("AdamWeightDecay", "Adam", "ApplyMomentum", "Assign", "AssignAdd", "AssignSub")
COLLECTIVE = ("AllReduce",)
# Bookkeeping that moves no data on a device. Load and TensorMove are how the compiler orders the use of parameters.
FREE = ("Load", "TensorMove", "UpdateState", "MakeTuple", "TupleGetItem", "Depend", "Return", "Reshape", "ExpandDims",
        "Squeeze", "ReshapeExt", "View", "call", "partial", "Partial", "Switch", "StopGradient", "Shape")  # fmt: skip

_NODE = re.compile(r"^\s+(%\d+)\([^=]*\) = (?:PrimFunc_|DoSignaturePrimitive::S-Prim-)?(\w+)\((.*)$")
_PARAMETER = re.compile(r"%para\d+_([\w.]+)")
_TENSOR = re.compile(r"<(?:Ref\[)?Tensor\[(\w+)\]\]?, \(([\d, -]*)\)")
_TUPLE = re.compile(r"<Tuple\[(.*?)\], TupleShape\((.*?)\)(?:>|, elements)")
_BYTES = {"Float32": 4, "Float16": 2, "BFloat16": 2, "Int32": 4, "Int64": 8, "Bool": 1, "UInt8": 1, "Int8": 1,
          "Float64": 8, "UInt32": 4, "UInt64": 8}  # fmt: skip


@dataclass
class Operator:
    """One node of the graph.

    Attributes:
        name: its kind, e.g. MatMul.
        result: its number in the graph, e.g. %12.
        inputs: the numbers it reads (parameters and constants are not numbered).
        operations: floating-point operations of matrix products and convolutions, a multiply-add as two; 0 for others.
        read, written: bytes.
        elements: numbers in its largest output.
        parameters: names of the parameters that it reads itself.
        tensors_in, tensors_out: element type and shape of every tensor, those inside tuples included.
        arguments: its arguments and attributes, as MindSpore wrote them.
        notes: comments below it: its scope, and the lines of code that it comes from.
    """

    name: str
    result: str
    inputs: tuple[str, ...]
    operations: float
    read: float
    written: float
    elements: int
    parameters: tuple[str, ...] = ()
    tensors_in: tuple[tuple[str, tuple[int, ...]], ...] = ()
    tensors_out: tuple[tuple[str, tuple[int, ...]], ...] = ()
    arguments: str = ""
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """matrix, movement, reduction, optimizer, collective, elementwise, or free."""
        for kind, names in (
            ("matrix", MATRIX + CONVOLUTION),
            ("movement", MOVEMENT),
            ("reduction", REDUCTION),
            ("optimizer", OPTIMIZER),
            ("collective", COLLECTIVE),
            ("free", FREE),
        ):
            if self.name in names:
                return kind
        return "elementwise"


def parse_graph(text: str) -> list[Operator]:
    """Operators of a graph in MindSpore's IR text, in order.

    Raises:
        UserError: there is none: the text is not such a dump.
    """
    operators: list[Operator] = []
    result = name = arguments = ""  # of a node whose types are still to come
    for line in text.splitlines():
        node = _NODE.match(line)
        if node:
            result, name, arguments = node.groups()
        elif result and line.startswith("      :"):
            operators.append(_operator(result, name, arguments, line))
            result = ""
        elif result:
            arguments += line  # the value of a small constant, printed over several lines
        elif operators and line.lstrip().startswith("#"):
            operators[-1].notes += (line.strip(),)
    if not operators:
        raise UserError("the graph dump holds no operators; this MindSpore writes it in another form")
    return operators


def _operator(result: str, name: str, arguments: str, types: str) -> Operator:
    before, _, after = types.partition(" -> ")
    inputs, outputs = list(_tensors(before)), list(_tensors(after))
    operations = _operations(name, arguments, [shape for _, shape in inputs], [shape for _, shape in outputs])
    written = sum(_size(tensor) for tensor in outputs)
    read = sum(_size(tensor) for tensor in inputs)
    if name in GATHER:  # reads the rows that it takes, and their numbers
        read = written + (_size(inputs[1]) if len(inputs) > 1 else 0)
    if name in FREE:
        read = written = 0.0
    named = arguments.split(" {")[0].split(" primitive_attrs")[0]
    numbered = tuple(re.findall(r"%\d+(?=[,)\s(])", named))
    elements = max((math.prod(shape) for _, shape in outputs), default=0)
    parameters = tuple(_PARAMETER.findall(named))
    return Operator(name, result, numbered, operations, read, written, elements, parameters, tuple(inputs),
                    tuple(outputs), arguments)  # fmt: skip


def _tensors(text: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Type and shape of every tensor in a list of abstract values, those inside tuples included."""
    for dtype, shape in _TENSOR.findall(text):
        yield dtype, _shape(shape)
    for types, shapes in _TUPLE.findall(text):
        dtypes = []
        for dtype, count in re.findall(r"(?:Ref\[)?Tensor\[(\w+)\]\]?(?:\*(\d+))?", types):
            dtypes += [dtype] * int(count or 1)
        for dtype, shape in zip(dtypes, re.findall(r"\(([\d, -]*)\)", shapes)):
            yield dtype, _shape(shape)


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.replace(" ", "").split(",") if part)


def _size(tensor: tuple[str, tuple[int, ...]]) -> float:
    dtype, shape = tensor
    return float(math.prod(shape) * _BYTES.get(dtype, 4))


def _operations(name: str, arguments: str, inputs: Sequence[tuple], outputs: Sequence[tuple]) -> float:
    """Floating-point operations of a matrix product or convolution: 2 x numbers out x terms of each."""
    if name in MATRIX:
        flags = re.findall(r"Bool\((\d)\)", arguments)
        transposed = name in ("MatMul", "BatchMatMul") and bool(flags) and flags[0] == "1"  # the others have no flag
        return 2.0 * math.prod(outputs[0]) * inputs[0][-2 if transposed else -1]
    if name in ("Conv2D", "Conv2DExt"):  # weights (out, in / groups, height, width)
        return 2.0 * math.prod(outputs[0]) * math.prod(inputs[1][1:])
    if name == "Conv2DBackpropInput":
        return 2.0 * math.prod(inputs[0]) * math.prod(inputs[1][1:])
    if name == "Conv2DBackpropFilter":
        return 2.0 * math.prod(inputs[0]) * math.prod(outputs[0][1:])
    if name == "ConvolutionGrad":  # of the input and of the weights, from the output's gradient
        wanted = re.search(r"\(I64\((\d)\), I64\((\d)\), I64\(\d\)\)", arguments)
        products = sum(map(int, wanted.groups())) if wanted else 2
        return products * 2.0 * math.prod(inputs[0]) * math.prod(inputs[2][1:])
    return 0.0


@dataclass(frozen=True)
class Kernel:
    """What runs as one piece on a device: an operator, or a chain of elementwise ones."""

    kind: str
    operations: float
    bytes: float


def kernels(operators: Sequence[Operator], fuse: bool) -> list[Kernel]:
    """Kernels of the graph: one per operator, or, with `fuse`, elementwise chains of equal size as one.

    A fused chain reads what comes from outside it and writes what is used outside it. A compiler that does not fuse
    into matrix products and reductions lies between the two.
    """
    working = [operator for operator in operators if operator.kind != "free"]
    if not fuse:
        return [Kernel(operator.kind, operator.operations, operator.read + operator.written) for operator in working]
    source = _sources(operators)
    cluster = _clusters(working, source)
    outside = _used_outside(working, source, cluster)
    result = [
        Kernel(operator.kind, operator.operations, operator.read + operator.written)
        for operator in working
        if operator.kind != "elementwise"
    ]
    # Of what an input names: of several results of an operator, the one that is taken from their tuple.
    size = {operator.result: sum(map(_size, operator.tensors_out)) for operator in operators}
    groups: dict[str, list[Operator]] = {}
    for operator in working:
        if operator.kind == "elementwise":
            groups.setdefault(cluster[operator.result], []).append(operator)
    for members in groups.values():
        internal = {operator.result for operator in members}
        numbered = [number for operator in members for number in operator.inputs if number in source]
        external = {source[number]: size[number] for number in numbered if source[number] not in internal}
        inside = sum(size[number] for number in numbered)
        constants = max(0.0, sum(operator.read for operator in members) - inside)  # parameters and constants
        moved = sum(external.values()) + constants
        moved += sum(operator.written for operator in members if operator.result in outside)
        result.append(Kernel("elementwise", 0.0, moved))
    return result


def _sources(operators: Sequence[Operator]) -> dict[str, str]:
    """Number -> number of the working operator whose data it is, through reshapes and tuples."""
    source: dict[str, str] = {}
    for operator in operators:
        behind = [source[number] for number in operator.inputs if number in source]
        source[operator.result] = behind[0] if operator.kind == "free" and behind else operator.result
    return source


def _clusters(working: Sequence[Operator], source: dict[str, str]) -> dict[str, str]:
    """Elementwise operator -> first operator of its chain; a chain continues while the number of elements stays."""
    elementwise = {operator.result: operator for operator in working if operator.kind == "elementwise"}
    cluster: dict[str, str] = {}
    for operator in working:
        if operator.kind != "elementwise":
            continue
        cluster[operator.result] = operator.result
        for number in operator.inputs:
            producer = elementwise.get(source.get(number, ""))
            if producer is not None and producer.elements == operator.elements and producer.result in cluster:
                cluster[operator.result] = cluster[producer.result]
                break
    return cluster


def _used_outside(working: Sequence[Operator], source: dict[str, str], cluster: dict[str, str]) -> set[str]:
    """Elementwise results that something outside their own chain reads."""
    used: set[str] = set()
    for operator in working:
        for number in operator.inputs:
            producer = source.get(number, "")
            if producer in cluster and cluster[producer] != cluster.get(operator.result):
                used.add(producer)
    return used


def dump_training_graph(config_path: str, batch_size: int, folder: Path) -> tuple[str, dict]:
    """Compile a training step as an Ascend gets it, in a process of its own, and return its graph.

    Args:
        config_path: YAML file.
        batch_size: images per card; 0: the configuration's.
        folder: for what MindSpore writes.

    Returns:
        The graph's text; and arch, batch, and sizes: the bytes of each gradient in the network's order.

    Raises:
        UserError: the compilation failed.
    """
    graph = dump_graphs([GraphRequest(config_path, "train", batch_size, for_ascend=True)], folder)[0]
    return graph.text, {"arch": graph.arch, "batch": graph.batch_size, "sizes": list(graph.sizes)}
