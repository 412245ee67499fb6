"""The kernels of a training step as MindSpore's Ascend backend compiles it (tools/ascend_dry_run), kept as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from focal.errors import UserError
from focal.files import write_text
from tools.ascend_dry_run.cases import Case
from tools.ascend_dry_run.launches import DeviceTensor, describe
from tools.ascend_dry_run.result import DryRun

_NAMED_TENSORS = 12  # more of them, as a fused all-reduce has, are only counted


@dataclass(frozen=True)
class Kernel:
    """One kind of kernel: a primitive with tensors of certain shapes.

    Attributes:
        primitive: MindSpore's name.
        kind: aclnn, acl, graph or hccl; see tools/ascend_dry_run.
        inputs, outputs: types and shapes as text.
        operations: floating-point operations of matrix products and convolutions, else 0.
        bytes: read and written in the device's memory.
    """

    primitive: str
    kind: str
    inputs: str
    outputs: str
    operations: float
    bytes: int


@dataclass(frozen=True)
class StepCounts:
    """A training step of one rank, from its last graph; independent of the machine.

    Attributes:
        name: of the model.
        batch: images per rank and step.
        soc, jit_level: what it was compiled for.
        kernels: each kind of kernel once.
        order: the launches, as places in `kernels`.
    """

    name: str
    batch: int
    soc: str
    jit_level: str
    kernels: tuple[Kernel, ...]
    order: tuple[int, ...]

    @property
    def operations(self) -> float:
        """Floating-point operations of matrix products and convolutions."""
        return sum(kernel.operations for kernel in self.launches())

    @property
    def bytes(self) -> int:
        """Bytes that kernels read and write."""
        return sum(kernel.bytes for kernel in self.launches())

    def launches(self) -> list[Kernel]:
        """Every launched kernel, in the order of the graph."""
        return [self.kernels[place] for place in self.order]

    def by_kind(self) -> dict[str, int]:
        """Launches by kind of kernel, most frequent first."""
        return dict(Counter(kernel.kind for kernel in self.launches()).most_common())

    def by_primitive(self) -> dict[str, tuple[int, int]]:
        """Launches and bytes by primitive, most bytes first."""
        launches: Counter[str] = Counter()
        moved: Counter[str] = Counter()
        for kernel in self.launches():
            launches[kernel.primitive] += 1
            moved[kernel.primitive] += kernel.bytes
        return {name: (launches[name], size) for name, size in moved.most_common()}

    def summary(self) -> dict[str, Any]:
        """What a table of before and after needs."""
        return {"kernels": self.by_kind(), "bytes": self.bytes, "operations": self.operations}

    def save(self, path: Path) -> None:
        """Write as JSON: a line per kind of kernel, so that a change shows in a diff."""
        head = {"name": self.name, "batch": self.batch, "soc": self.soc, "jit_level": self.jit_level}
        kernels = ",\n  ".join(json.dumps(list(asdict(kernel).values())) for kernel in self.kernels)
        order = json.dumps(self.order, separators=(",", ":"))
        write_text(path, f'{json.dumps(head)[:-1]},\n "kernels": [\n  {kernels}\n ],\n "order": {order}}}\n')

    @staticmethod
    def load(path: Path) -> StepCounts:
        """Read what `save` wrote.

        Raises:
            UserError: the file does not exist, or holds something else.
        """
        if not path.is_file():
            raise UserError(f"counts: {path} does not exist; --config CONFIG --save FILE makes it")
        try:
            raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            raw["kernels"] = tuple(Kernel(*values) for values in raw["kernels"])
            counts = StepCounts(**{**raw, "order": tuple(raw["order"])})
            counts.launches()
        except (ValueError, TypeError, KeyError, IndexError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"counts: {path} holds no counts as --save writes them ({reason})") from None
        return counts


def step_counts(name: str, case: Case, run: DryRun) -> StepCounts:
    """The counts of a dry run; its graph is enough: the dry-run step may have failed for want of memory here.

    Raises:
        UserError: the case did not compile.
    """
    if not run.launches:
        raise UserError(f"{name}: the dry run lists no kernels: {run.error or 'the graph was not dumped'}")
    places: dict[Kernel, int] = {}
    order = []
    for launch in run.launches:
        kind = run.primitives[launch.primitive].kernel
        if kind != "rt":  # reshapes launch nothing
            texts = _tensors(launch.inputs), _tensors(launch.outputs)
            kernel = Kernel(launch.primitive, kind, *texts, launch.operations, launch.bytes)
            order.append(places.setdefault(kernel, len(places)))
    return StepCounts(name, run.batch, case.soc, case.jit_level, tuple(places), tuple(order))


def _tensors(tensors: Sequence[DeviceTensor]) -> str:
    return describe(tensors) if len(tensors) <= _NAMED_TENSORS else f"{len(tensors)} tensors"
