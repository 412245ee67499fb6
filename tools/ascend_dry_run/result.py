"""What MindSpore chose for an Ascend, read from its log and from its graph after the assignment of streams."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.ascend_dry_run.launches import Launch, read_launches, total_bytes

COMPILING = "ASCEND DRY RUN: compiling"  # the line of the log from which on kernels belong to the graph

# MindSpore's kernel types, and what they are called here and in its log of the choice.
_KINDS = {
    "opapi_kernel": "aclnn",  # CANN's present operators
    "acl_kernel": "acl",  # CANN's older single operators; CANN runs each on the AI Core or on the AI CPU
    "hccl_kernel": "hccl",  # collectives
    "rt_kernel": "rt",  # of MindSpore's run time: reshapes, which move nothing
    "akg_kernel": "graph",  # chains of operators, fused by MindSpore's graph kernels
    "aicpu_kernel": "aicpu",
}
_KERNEL = re.compile(r"kernel opname:(\w+), kernel type:(\w+)")
_FALLBACK = re.compile(r"node is (\S+) should backoff")
_NO_ADAPTER = re.compile(r"Can't find OpAdapter for (\w+)")


@dataclass(frozen=True)
class Primitive:
    """How often an operator is launched in the graph, and by which kind of kernel (several joined by +)."""

    count: int
    kernel: str


@dataclass(frozen=True)
class AllReduce:
    """One message between ranks: how many tensors it holds, and their bytes."""

    tensors: int
    bytes: int


@dataclass(frozen=True)
class DryRun:
    """The outcome of one case.

    Attributes:
        primitives: by name.
        fallback_to_cpu: operators without a kernel for the chip, which the host would compute: their full names.
        without_adapter: operators that MindSpore cannot hand on to GE.
        launches: every kernel with its tensors, in the graph's order; none unless the graph was dumped.
        all_reduces: the messages between ranks among them.
        peak_memory_bytes: of the dry-run step; workspaces of kernels, which only CANN knows, are missing.
        error: why the compilation or the dry-run step did not end; empty: it did.
        batch: images.
        arch: model name.
        soc: chip, as CANN names it.
        jit_level: what the product's start-up set; empty: it was not reached.
        seconds: for building, compiling and the dry-run step.
    """

    primitives: dict[str, Primitive] = field(default_factory=dict)
    fallback_to_cpu: tuple[str, ...] = ()
    without_adapter: tuple[str, ...] = ()
    launches: tuple[Launch, ...] = ()
    all_reduces: tuple[AllReduce, ...] = ()
    peak_memory_bytes: int = 0
    error: str = ""
    batch: int = 0
    arch: str = ""
    soc: str = ""
    jit_level: str = ""
    seconds: float = 0.0

    def kernels(self) -> dict[str, int]:
        """Launches by kind of kernel; without `rt`, which launches nothing."""
        counts: Counter[str] = Counter()
        for primitive in self.primitives.values():
            if primitive.kernel != "rt":
                counts[primitive.kernel] += primitive.count
        return dict(counts.most_common())


def read_dry_run(log: Path, graphs: Iterable[Path], result: dict[str, Any]) -> DryRun:
    """The outcome of a process that compiled one case.

    Args:
        log: what it wrote.
        graphs: its dumps of the graphs after the assignment of streams, if it was told to dump them.
        result: its own account: the other attributes of DryRun.
    """
    kernels: Counter[tuple[str, str]] = Counter()
    fallbacks: dict[str, None] = {}
    missing: dict[str, None] = {}
    compiling = False
    with log.open(encoding="utf-8", errors="replace") as lines:  # of a large network, hundreds of megabytes
        for line in lines:
            compiling = compiling or line.startswith(COMPILING)
            if not compiling:
                continue
            kernel = _KERNEL.search(line)
            if kernel:
                kernels[kernel[1], _KINDS.get(kernel[2], kernel[2])] += 1
            elif "should backoff" in line:
                fallbacks.update(dict.fromkeys(_FALLBACK.findall(line)))
            elif "OpAdapter" in line:
                missing.update(dict.fromkeys(_NO_ADAPTER.findall(line)))
    launches = tuple(launch for graph in graphs for launch in read_launches(graph))
    reduces = tuple(
        AllReduce(len(launch.inputs), total_bytes(launch.inputs))
        for launch in launches
        if launch.primitive == "AllReduce"
    )
    return DryRun(_primitives(kernels), tuple(fallbacks), tuple(missing), launches, reduces, **result)


def _primitives(kernels: Counter[tuple[str, str]]) -> dict[str, Primitive]:
    counts: Counter[str] = Counter()
    kinds: dict[str, set[str]] = {}
    for (name, kind), count in kernels.items():
        counts[name] += count
        kinds.setdefault(name, set()).add(kind)
    return {name: Primitive(count, "+".join(sorted(kinds[name]))) for name, count in counts.most_common()}
