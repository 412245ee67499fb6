"""The tables of docs/scaling.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tools.scaling.counts import StepCounts
from tools.scaling.machine import BY_HOST, CHIPS, SUNK, Launching, Machine, scaling_row, timeline

IMAGENET_IMAGES = 1_281_167
KINDS = ("aclnn", "acl", "graph", "hccl")
# Name, chip, jit_level whose kernels are counted, launches. GE's kernels cannot be seen; those of O0 stand for them.
SCENARIOS = (
    ("910A, O2", "910A", "O0", SUNK),
    ("A2, O2", "A2", "O0", SUNK),
    ("A2, O0", "A2", "O0", BY_HOST),
    ("A2, O1", "A2", "O1", BY_HOST),
)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first column is text, the others are numbers."""
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def step_table(steps: Mapping[str, StepCounts], before: Mapping[str, Any]) -> str:
    """Kernels and bytes of each step, before (where that is known) and now.

    Args:
        steps: by a name that tells network and jit_level.
        before: what `StepCounts.summary` returned for them once, by the same names.
    """
    rows = []
    for name, counts in steps.items():
        old, new = before.get(name), counts.summary()
        cells = [_then_now(_launches(old), _launches(new), "{:,}")]
        for kind in KINDS:
            cells.append(_then_now(old and old["kernels"].get(kind, 0), new["kernels"].get(kind, 0), "{:,}"))
        cells.append(_then_now(old and old["bytes"] / 1e9, new["bytes"] / 1e9, "{:.1f}"))
        rows.append([name, *cells, f"{counts.operations / 1e12:.3f}"])
    return table(["step", "kernels", *KINDS, "GB moved", "T operations"], rows)


def _launches(summary: Any) -> Any:
    return summary and sum(summary["kernels"].values())


def _then_now(old: Any, new: Any, form: str) -> str:
    texts = [form.format(value) for value in (old, new) if value is not None]
    return " -> ".join(dict.fromkeys(texts))


def primitive_table(steps: Mapping[str, StepCounts], limit: int = 20) -> str:
    """The primitives that move most, for several compilations of a network side by side."""
    of_step = {name: counts.by_primitive() for name, counts in steps.items()}
    largest: dict[str, int] = {}
    for primitives in of_step.values():
        for primitive, (_, moved) in primitives.items():
            largest[primitive] = max(moved, largest.get(primitive, 0))
    rows = []
    for primitive in sorted(largest, key=lambda name: -largest[name])[:limit]:
        cells = []
        for primitives in of_step.values():
            launches, moved = primitives.get(primitive, (0, 0))
            cells += [f"{launches:,}", f"{moved / 1e9:.2f}"] if launches else ["", ""]
        rows.append([primitive, *cells])
    head = [text for name in steps for text in (f"{name}: kernels", "GB")]
    return table(["primitive", *head], rows)


def kernel_table(counts: StepCounts, limit: int = 20) -> str:
    """The kernels, by primitive and shapes, that move most."""
    launches = [0] * len(counts.kernels)
    for place in counts.order:
        launches[place] += 1
    moved = {place: number * counts.kernels[place].bytes for place, number in enumerate(launches)}
    rows = []
    for place in sorted(moved, key=lambda key: -moved[key])[:limit]:
        kernel = counts.kernels[place]
        tensors = f"{kernel.primitive}: {kernel.inputs} -> {kernel.outputs}"
        rows.append([tensors, f"{launches[place]:,}", f"{moved[place] / 1e9:.2f}"])
    return table(["kernel", "launches", "GB"], rows)


def speed_table(networks: Mapping[str, Mapping[str, StepCounts]], cards: int = 8) -> str:
    """Expected time of a step and speed of one server, for each chip and jit_level.

    Args:
        networks: by name, the counts of each jit_level.
        cards: of the server.
    """
    rows = []
    for name, levels in networks.items():
        for scenario, chip, level, launching in SCENARIOS:
            if level in levels:
                rows.append([f"{name}, {scenario}", *_speed_cells(levels[level], CHIPS[chip], launching, cards)])
    head = ["network, chip, jit_level", "device, ms", "host, ms", "step, ms", "images/s, 1 card"]
    return table([*head, f"images/s, {cards} cards"], rows)


def _speed_cells(counts: StepCounts, machine: Machine, launching: Launching, cards: int) -> list[str]:
    hosts = (launching.least, launching.most)
    steps = [timeline(counts, machine, host) for host in hosts]
    launches = [sum(host.get(kernel.kind, 0.0) for kernel in counts.launches()) for host in hosts]
    servers = [scaling_row(counts, cards, machine, host).images_per_second for host in hosts]
    return [
        f"{steps[0].working * 1e3:.0f}",
        _range([seconds * 1e3 for seconds in launches]),
        _range([step.seconds * 1e3 for step in steps]),
        _range([counts.batch / step.seconds for step in steps]),
        _range(servers),
    ]


def _range(values: Sequence[float]) -> str:
    texts = dict.fromkeys(f"{value:,.0f}" for value in sorted(values))
    return " to ".join(texts)


def scaling_table(counts: StepCounts, machine: Machine, host: Mapping[str, float], cards: Sequence[int]) -> str:
    """How a number of cards train together."""
    rows = []
    for number in cards:
        row = scaling_row(counts, number, machine, host)
        hours = 300 * IMAGENET_IMAGES / row.images_per_second / 3600
        rows.append([
            str(number), f"{row.step * 1e3:.0f}", f"{row.images_per_second:,.0f}", f"{row.exposed * 1e3:.1f}",
            f"{row.efficiency:.0%}", f"{row.cores_needed:.0f}", row.limit, f"{hours:.0f}",
        ])  # fmt: skip
    head = ["cards", "step, ms", "images/s", "all-reduce not hidden, ms", "scaling", "cores per server", "limit"]
    return table([*head, "300 epochs, hours"], rows)


def published_table(steps: Mapping[str, StepCounts], published: Sequence[tuple[str, str, float]]) -> str:
    """Steps whose time on eight cards is published, beside what is calculated.

    Args:
        steps: by name.
        published: (name, chip, milliseconds).
    """
    rows = []
    for name, chip, milliseconds in published:
        counts = steps[name]
        row = scaling_row(counts, 8, CHIPS[chip], {})
        rows.append([
            f"{name}, {counts.batch} images a card, {chip}", f"{milliseconds:.1f}", f"{row.step * 1e3:.1f}",
            f"{row.step * 1e3 / milliseconds - 1:+.0%}", f"{8 * counts.batch / milliseconds * 1e3:,.0f}",
            f"{row.images_per_second:,.0f}",
        ])  # fmt: skip
    head = ["network", "published, ms", "calculated, ms", "difference", "published, images/s", "calculated, images/s"]
    return table(head, rows)
