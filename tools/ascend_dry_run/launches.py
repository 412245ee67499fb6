"""The kernels of MindSpore's last graph for an Ascend, in the order of launch: shapes, types, and what they move.

A pass of the Ascend backend dumps that graph (see simulate.py): casts, copies, fused kernels and fused all-reduces are
in it as they run. What a kernel does inside CANN (tiling, workspaces, changes of layout) is not. The dump sorts the
graph's nodes by dependence; the order in which they run stands in MindSpore's dump of its actors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from tools.graph_report.counts import TYPE_BYTES, floating_point_operations

# A tensor on the device: type, shape, and format, as MindSpore's backend names them.
DeviceTensor = tuple[str, tuple[int, ...], str]

_NODE = re.compile(r"^  %\d+\([^=]*\) = (?:PrimFunc_)?(\w+)\((.*)$")
_NAME = re.compile(r"^      # Fullname with scope: \((.*)\)$")
_ACTOR = re.compile(r"^\s+# AID : (\d+)_(.*)$")  # place in the order, name of the node
_DEVICE_TENSOR = re.compile(r"<(\w+?)x(\w+)\[const vector\]\{([^}]*)\}>")

# These launch nothing, or only change how later kernels address the same memory.
_FREE = frozenset(("Reshape", "ExpandDims", "Squeeze", "Flatten", "FlattenGrad", "ReshapeExt", "View"))
_VIEW = re.compile(r"\w+View$")  # MindSpore's primitives for strided views: TransposeView, SliceExtView, ...
# These read only as much as they write, however large their input: rows by index, and parts of a tensor.
_SELECTING = frozenset(("Gather", "IndexSelect", "Embedding", "StridedSlice", "Slice", "SliceExt", "Narrow"))
_OVERWRITING = frozenset(("Assign", "InplaceCopy"))  # these do not read their first input, which they overwrite


@dataclass(frozen=True)
class Launch:
    """One launched kernel.

    Attributes:
        primitive: MindSpore's name of it.
        inputs, outputs: its tensors on the device.
        operations: floating-point operations of matrix products and convolutions, a multiply-add as two; else 0.
    """

    primitive: str
    inputs: tuple[DeviceTensor, ...]
    outputs: tuple[DeviceTensor, ...]
    operations: float = 0.0

    @property
    def bytes(self) -> int:
        """Bytes read and written in the device's memory, every tensor once."""
        if self.primitive in _FREE or _VIEW.match(self.primitive):
            return 0
        written = total_bytes(self.outputs)
        if self.primitive in _SELECTING:
            return 2 * written + total_bytes(self.inputs[1:])
        return written + total_bytes(self.inputs[1:] if self.primitive in _OVERWRITING else self.inputs)


def total_bytes(tensors: Iterable[DeviceTensor]) -> int:
    """Bytes of tensors."""
    return sum(TYPE_BYTES[dtype] * math.prod(shape) for dtype, shape, _ in tensors)


def describe(tensors: Iterable[DeviceTensor]) -> str:
    """Types, shapes and formats as text: `Float16 64x196x384, Float32 384 NCHW`. The default format is not named."""
    texts = []
    for dtype, shape, layout in tensors:
        size = "x".join(map(str, shape)) or "1"
        texts.append(f"{dtype} {size}" + ("" if layout == "DefaultFormat" else f" {layout}"))
    return ", ".join(texts)


def read_launches(graph: Path) -> list[Launch]:
    """The kernels of a graph in the order in which they run.

    Args:
        graph: as MindSpore's pass hwopt_d_after_stream_assign dumps it, with the dumps of actors in a folder beside it;
            without them the order is the graph's.
    """
    number = (graph.stem.split("_")[-2:-1] or ["0"])[0]  # hwopt_d_after_stream_assign_NUMBER_PASS.ir
    order = _order_of_actors(graph.parent / "actor_set" / f"final_actor_set_kernel_graph_{number}.ir")
    launches: list[tuple[int, Launch]] = []
    place = 0
    for node in _nodes(graph):
        launch = _launch(node)
        if launch is not None:
            names = [match[1] for match in map(_NAME.match, node) if match]
            place = order.get(names[0], place) if names else place
            launches.append((place, launch))
    return [launch for _, launch in sorted(launches, key=lambda pair: pair[0])]


def _order_of_actors(path: Path) -> dict[str, int]:
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8") as lines:
        return {match[2]: int(match[1]) for match in map(_ACTOR.match, lines) if match}


def _nodes(graph: Path) -> Iterator[list[str]]:
    """The lines of each node."""
    node: list[str] = []
    with graph.open(encoding="utf-8") as lines:  # of a large network, tens of megabytes
        for line in lines:
            if _NODE.match(line):
                yield node
                node = []
            node.append(line)
    yield node


def _launch(node: Sequence[str]) -> Optional[Launch]:
    """The kernel of a node, if it is one; the other nodes, bookkeeping of the compiler, have no types on the device."""
    head = _NODE.match(node[0]) if node else None
    on_device = (line for line in node if line.startswith("      : (") and "[const vector]{" in line)
    types = [line for line in on_device if "Tensor[" not in line]
    if not head or not types:
        return None
    before, _, after = types[0].partition(" -> ")
    inputs, outputs = _tensors(before), _tensors(after)
    arguments = head[2].partition(" primitive_attrs:")[0]
    shapes = [[shape for _, shape, _ in tensors] for tensors in (inputs, outputs)]
    return Launch(head[1], inputs, outputs, floating_point_operations(head[1], arguments, *shapes))


def _tensors(text: str) -> tuple[DeviceTensor, ...]:
    """Tensors in a list of types, without the numbers and flags that the host passes to a kernel."""
    found = []
    for dtype, layout, sizes in _DEVICE_TENSOR.findall(text):
        shape = tuple(int(size) for size in sizes.split(",") if size.strip())
        if dtype in TYPE_BYTES and (shape or dtype not in ("Int64", "Bool")):
            found.append((dtype, shape, layout))
    return tuple(found)
