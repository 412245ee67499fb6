"""Operators, floating-point operations and bytes of a compiled graph, read from MindSpore's own dump of it.

graph_dump.py makes the dump; graph_report.py says which part of the network an operator belongs to.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from focal.errors import UserError

MATRIX = ("MatMul", "BatchMatMul", "MatMulExt", "BatchMatMulExt", "Dense")
FLASH_PRODUCTS = {"FlashAttentionScore": 2, "FlashAttentionScoreGrad": 5}  # how many products a kernel does
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
TYPE_BYTES = {"Float32": 4, "Float16": 2, "BFloat16": 2, "Int32": 4, "Int64": 8, "Bool": 1, "UInt8": 1, "Int8": 1,
              "Int16": 2, "UInt16": 2, "Float64": 8, "UInt32": 4, "UInt64": 8}  # fmt: skip


@dataclass
class Operator:
    """One node of the graph.

    Attributes:
        name: its kind, e.g. MatMul.
        result: its number in the graph, e.g. %12.
        inputs: the numbers it reads (parameters and constants are not numbered).
        operations: floating-point operations of matrix products and convolutions, a multiply-add as two; 0 for others.
        read, written: bytes.
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
    named = arguments.split(" {")[0].split(" primitive_attrs")[0]
    shapes = [[shape for _, shape in tensors] for tensors in (inputs, outputs)]
    operations = floating_point_operations(name, named, *shapes)
    written = sum(_size(tensor) for tensor in outputs)
    read = sum(_size(tensor) for tensor in inputs)
    if name in GATHER:  # reads the rows that it takes, and their numbers
        read = written + (_size(inputs[1]) if len(inputs) > 1 else 0)
    if name in FREE:
        read = written = 0.0
    numbered = tuple(re.findall(r"%\d+(?=[,)\s(])", named))
    parameters = tuple(_PARAMETER.findall(named))
    return Operator(name, result, numbered, operations, read, written, parameters, tuple(inputs),
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
    return float(math.prod(shape) * TYPE_BYTES.get(dtype, 4))


def floating_point_operations(
    name: str, arguments: str, inputs: Sequence[tuple[int, ...]], outputs: Sequence[tuple[int, ...]]
) -> float:
    """Operations of a matrix product, convolution or fused attention: 2 x numbers out x terms of each; others: 0.

    Args:
        name: of the primitive.
        arguments: as MindSpore writes them, without attributes; the first flag: the left side is transposed.
        inputs, outputs: shapes.
    """
    if name in MATRIX:
        flags = re.findall(r"Bool\((\d)\)", arguments)
        transposed = name in ("MatMul", "BatchMatMul") and bool(flags) and flags[0] == "1"  # the others have no flag
        return 2.0 * math.prod(outputs[0]) * inputs[0][-2 if transposed else -1]
    if name in ("Conv2D", "Conv2DExt", "Convolution"):  # weights (out, in / groups, height, width)
        return 2.0 * math.prod(outputs[0]) * math.prod(inputs[1][1:])
    if name == "Conv2DBackpropInput":
        return 2.0 * math.prod(inputs[0]) * math.prod(inputs[1][1:])
    if name == "Conv2DBackpropFilter":
        return 2.0 * math.prod(inputs[0]) * math.prod(outputs[0][1:])
    if name == "ConvolutionGrad":  # of the input and of the weights, from the output's gradient
        wanted = re.search(r"\(I64\((\d)\), I64\((\d)\), I64\(\d\)\)", arguments)
        products = sum(map(int, wanted.groups())) if wanted else 2
        return products * 2.0 * math.prod(inputs[0]) * math.prod(inputs[2][1:])
    if name in FLASH_PRODUCTS:  # queries x keys x head size each; the maxima of the softmax are (B, heads, queries, 8)
        maxima = [shape for shape in (*inputs, *outputs) if len(shape) == 4 and shape[-1] == 8]
        return 2.0 * FLASH_PRODUCTS[name] * maxima[0][2] * math.prod(inputs[1])
    return 0.0
