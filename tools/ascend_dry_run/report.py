"""Outcomes of dry runs as text and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from tools.ascend_dry_run.cases import Case
from tools.ascend_dry_run.launches import describe
from tools.ascend_dry_run.result import DryRun
from tools.ascend_dry_run.rules import violations


def as_text(case: Case, run: DryRun) -> str:
    """One outcome: primitives by kind of kernel with the bytes they move, all-reduces, memory, broken rules."""
    moved = bytes_of_primitives(run)
    lines = [
        f"{run.arch}, {case.what}, batch {run.batch}, rank 0 of {case.ranks}, {case.soc}, jit_level {run.jit_level}",
        "",
        "| primitive | count | kernel | MB moved |",
        "| --- | ---: | --- | ---: |",
    ]
    rows = sorted(run.primitives.items(), key=lambda row: (row[1].kernel, -row[1].count, row[0]))
    lines += [f"| {name} | {p.count} | {p.kernel} | {moved[name] / 1e6:,.1f} |" for name, p in rows]
    lines += ["", "kernels: " + (_counts(run) or "none"), f"moved: {sum(moved.values()) / 1e9:,.2f} GB"]
    if run.all_reduces:
        sizes = ", ".join(f"{reduce.bytes / 2**20:.3f} ({reduce.tensors})" for reduce in run.all_reduces)
        lines.append(f"all-reduces: {len(run.all_reduces)}, MiB (tensors): {sizes}")
    lines.append(f"peak memory: {run.peak_memory_bytes / 2**20:,.1f} MiB and the workspaces of kernels")
    broken = violations(run, run.jit_level)
    return "\n".join([*lines, *(f"rule broken: {text}" for text in broken), *([] if broken else ["rules: kept"]), ""])


def as_dict(case: Case, run: DryRun) -> dict[str, Any]:
    """One outcome for JSON; equal kernels are listed once, in the order of their first launch."""
    moved = bytes_of_primitives(run)
    return {
        "arch": run.arch,
        "what": case.what,
        "batch": run.batch,
        "ranks": case.ranks,
        "soc": case.soc,
        "jit_level": run.jit_level,
        "primitives": {
            name: {"count": p.count, "kernel": p.kernel, "bytes": moved[name]} for name, p in run.primitives.items()
        },
        "kernels": run.kernels(),
        "fallback_to_cpu": list(run.fallback_to_cpu),
        "without_adapter": list(run.without_adapter),
        "all_reduces": [{"tensors": reduce.tensors, "bytes": reduce.bytes} for reduce in run.all_reduces],
        "peak_memory_bytes": run.peak_memory_bytes,
        "error": run.error,
        "broken_rules": violations(run, run.jit_level),
        "launches": [
            {
                "primitive": launch.primitive,
                "count": count,
                "inputs": describe(launch.inputs),
                "outputs": describe(launch.outputs),
                "bytes": launch.bytes,
                "operations": launch.operations,
            }
            for launch, count in Counter(run.launches).items()
        ],
    }


def bytes_of_primitives(run: DryRun) -> Counter[str]:
    """Bytes that the kernels of each primitive read and write; none if the graph was not dumped."""
    moved: Counter[str] = Counter()
    for launch in run.launches:
        moved[launch.primitive] += launch.bytes
    return moved


def as_matrix(cases: Mapping[str, Case], runs: Mapping[str, DryRun]) -> str:
    """All outcomes as one table in Markdown."""
    lines = [
        "| case | kernels | of them aclnn | acl | hccl | graph | all-reduces | rules |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for name in cases:
        run = runs[name]
        kernels = run.kernels()
        counts = [kernels.get(kind, 0) for kind in ("aclnn", "acl", "hccl", "graph")]
        cells = [f"{count:,}" for count in (sum(kernels.values()), *counts, len(run.all_reduces))]
        if run.jit_level == "O2":  # GE, not MindSpore, chooses the kernels
            cells = [""] * len(cells)
        broken = "; ".join(violations(run, run.jit_level)) or "kept"
        lines.append(f"| {name} | {' | '.join(cells)} | {broken} |")
    return "\n".join([*lines, ""])


def _counts(run: DryRun) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in run.kernels().items())
