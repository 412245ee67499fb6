"""Expected speed of training on 1 to 64 cards, on paper: python tools/scaling.py --config configs/X.yaml

Compiles the training step of the configuration (minutes; nothing runs, and no accelerator is needed), counts its
operations and bytes, and prints the table of docs/scaling.md for the machine that the flags describe. --save FILE keeps
the counts, --counts FILE uses them again.

A roofline over the kernels of the real graph; every efficiency is an assumption (docs/scaling.md says where each comes
from).

- A kernel takes the longer of operations / (peak * efficiency) and bytes / (bandwidth * efficiency), plus a start.
- A ring all-reduce of S bytes over N cards takes 2 (N - 1) / N * S / link; buckets leave during the backward pass, so
  only what outlasts it, and the last bucket, costs time.
- A server's cores must prepare as many images a second as its cards use.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "src"), str(Path(__file__).resolve().parents[1])]

from focal.checkpoint.paths import check_output_file  # noqa: E402
from focal.errors import UserError, run_main  # noqa: E402
from focal.files import write_json  # noqa: E402
from tools.graph_report.counts import Kernel, dump_training_graph, kernels, parse_graph  # noqa: E402

IMAGENET_IMAGES = 1_281_167


@dataclasses.dataclass(frozen=True)
class Machine:
    """A cluster of equal servers. Defaults: Atlas 800 (8 x Ascend 910A, 192 cores); links and fractions are assumed."""

    peak: float = dataclasses.field(default=256e12, metadata={"help": "operations a second and card in float16"})
    bandwidth: float = dataclasses.field(default=1.2e12, metadata={"help": "bytes a second of a card's memory"})
    matrix_fraction: float = dataclasses.field(default=0.5, metadata={"help": "fraction of the peak in products"})
    memory_fraction: float = dataclasses.field(default=0.4, metadata={"help": "fraction of the bandwidth in kernels"})
    kernel_start: float = dataclasses.field(default=3e-6, metadata={"help": "seconds a kernel costs beside its work"})
    cards: int = dataclasses.field(default=8, metadata={"help": "cards per server"})
    link: float = dataclasses.field(default=24e9, metadata={"help": "bytes a second of a card within its server"})
    network: float = dataclasses.field(default=10e9, metadata={"help": "bytes a second of a card to other servers"})
    message: float = dataclasses.field(default=30e-6, metadata={"help": "seconds a ring step costs beside its bytes"})
    cores: int = dataclasses.field(default=192, metadata={"help": "processor cores per server"})
    core_images: float = dataclasses.field(default=150.0, metadata={"help": "images a second that a core prepares"})


@dataclasses.dataclass(frozen=True)
class StepCounts:
    """A training step of one card, from its graph; independent of the machine.

    Attributes:
        name: of the model.
        batch: images per card and step.
        unfused, fused: (number, operations, bytes) of equal kernels; without and with elementwise chains fused.
        buckets: bytes of each all-reduce, in the order of sending.
    """

    name: str
    batch: int
    unfused: tuple[tuple[int, float, float], ...]
    fused: tuple[tuple[int, float, float], ...]
    buckets: tuple[int, ...]

    @property
    def operations(self) -> float:
        """Floating-point operations of matrix products and convolutions."""
        return sum(number * operations for number, operations, _ in self.unfused)

    def bytes(self, fused: bool) -> float:
        """Bytes that kernels read and write."""
        return sum(number * moved for number, _, moved in (self.fused if fused else self.unfused))

    def number_of_kernels(self, fused: bool) -> int:
        """Kernels that a step starts."""
        return sum(number for number, _, _ in (self.fused if fused else self.unfused))

    def save(self, path: Path) -> None:
        """Write as JSON; counting takes minutes, reading does not."""
        write_json(path, dataclasses.asdict(self))

    @staticmethod
    def load(path: Path) -> StepCounts:
        """Read what `save` wrote."""
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for key in ("unfused", "fused"):
            raw[key] = tuple(tuple(entry) for entry in raw[key])
        return StepCounts(**{**raw, "buckets": tuple(raw["buckets"])})


def count_training_step(config_path: str, batch_size: int = 0) -> StepCounts:
    """Counts of the training step of a configuration, compiled here; 0: the configuration's own batch size."""
    with tempfile.TemporaryDirectory() as folder:
        text, result = dump_training_graph(config_path, batch_size, Path(folder))
    return count_graph(result["arch"], result["batch"], text, result["sizes"])


def count_graph(name: str, batch: int, text: str, sizes: Sequence[int]) -> StepCounts:
    """Counts of a dumped graph.

    Args:
        name: of the model.
        batch: images per card.
        text: the graph.
        sizes: bytes of each bucket of gradients.
    """
    operators = parse_graph(text)
    merged = [_merged(kernels(operators, fuse)) for fuse in (False, True)]
    return StepCounts(name, batch, merged[0], merged[1], tuple(sizes))


def _merged(work: Sequence[Kernel]) -> tuple[tuple[int, float, float], ...]:
    numbers = Counter((kernel.operations, kernel.bytes) for kernel in work)
    return tuple((number, operations, moved) for (operations, moved), number in sorted(numbers.items()))


def step_seconds(counts: StepCounts, machine: Machine, fused: bool) -> float:
    """Seconds of a step on one card alone, data at hand."""
    total = 0.0
    for number, operations, moved in counts.fused if fused else counts.unfused:
        computing = operations / (machine.peak * machine.matrix_fraction)
        moving = moved / (machine.bandwidth * machine.memory_fraction)
        total += number * (max(computing, moving) + machine.kernel_start)
    return total


def all_reduce_seconds(size: float, cards: int, machine: Machine) -> float:
    """Seconds of a ring all-reduce of `size` bytes over `cards` cards; the slowest link sets the pace."""
    if cards == 1:
        return 0.0
    pace = machine.link if cards <= machine.cards else machine.network
    return 2 * (cards - 1) * (size / cards / pace + machine.message)


def exposed_seconds(counts: StepCounts, cards: int, step: float, machine: Machine) -> float:
    """Seconds of all-reduce that the backward pass (two thirds of the step) does not hide.

    Buckets become ready evenly over the backward pass, and are sent one after the other.
    """
    backward, sent = 2 / 3 * step, 0.0
    for number, size in enumerate(counts.buckets, start=1):
        ready = backward * number / len(counts.buckets)
        sent = max(sent, ready) + all_reduce_seconds(size, cards, machine)
    return max(0.0, sent - backward) if cards > 1 else 0.0


@dataclasses.dataclass(frozen=True)
class Row:
    """One number of cards: seconds of a step, images a second, fraction of perfect scaling, cores needed, the limit."""

    cards: int
    step: float
    exposed: float
    images_per_second: float
    efficiency: float
    cores_needed: float
    limit: str


def scaling_row(counts: StepCounts, cards: int, machine: Machine, fused: bool) -> Row:
    """How `cards` cards train together."""
    alone = step_seconds(counts, machine, fused)
    exposed = exposed_seconds(counts, cards, alone, machine)
    local = min(cards, machine.cards)
    cores_needed = local * counts.batch / (alone + exposed) / machine.core_images
    waiting = local * counts.batch / (machine.cores * machine.core_images)  # seconds that the host needs for a step
    step = max(alone + exposed, waiting)
    if step > alone + exposed:
        limit = "host"
    elif exposed > 0.1 * alone:
        limit = "network" if cards > machine.cards else "links"
    else:
        limit = "card"
    rate = cards * counts.batch / step
    return Row(cards, step, exposed, rate, rate * alone / (cards * counts.batch), cores_needed, limit)


def report(counts: StepCounts, machine: Machine, cards: Sequence[int], epochs: int) -> str:
    """The figures as Markdown."""
    sent = sum(counts.buckets) / 2**20
    lines = [
        f"### {counts.name}, {counts.batch} images per card",
        "",
        f"- {counts.operations / 1e12:.3f} T operations, {counts.operations / counts.batch / 1e9:.2f} G per image",
        f"- {counts.bytes(False) / 1e9:.1f} GB moved by {counts.number_of_kernels(False):,} kernels, "
        f"{counts.bytes(True) / 1e9:.1f} GB by {counts.number_of_kernels(True):,} with elementwise chains fused",
        f"- {counts.operations / counts.bytes(False):.0f} operations per byte; the card's balance is "
        f"{machine.peak / machine.bandwidth:.0f}: memory, not arithmetic, sets the pace",
        f"- {len(counts.buckets)} all-reduces, {sent:.1f} MiB together",
        "",
        "| cards | step, ms (fused) | images/s (fused) | all-reduce not hidden, ms | scaling | cores per server "
        f"| limit | {epochs} epochs, hours |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for number in cards:
        plain, fused = (scaling_row(counts, number, machine, fuse) for fuse in (False, True))
        hours = epochs * IMAGENET_IMAGES / plain.images_per_second / 3600
        lines.append(
            f"| {number} | {plain.step * 1e3:.0f} ({fused.step * 1e3:.0f}) "
            f"| {plain.images_per_second:,.0f} ({fused.images_per_second:,.0f}) | {plain.exposed * 1e3:.1f} "
            f"| {plain.efficiency:.0%} | {plain.cores_needed:.0f} | {plain.limit} | {hours:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Read the flags, count or load, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", help="YAML file of the training")
    source.add_argument("--counts", type=Path, help="counts that --save kept, such as docs/scaling_*.json")
    parser.add_argument("--batch_size", type=int, default=0, help="images per card; default: the configuration's")
    parser.add_argument("--save", type=Path, help="file to keep the counts in")
    parser.add_argument("--number_of_cards", default="1,2,4,8,16,32,64", help="rows of the table")
    parser.add_argument("--epochs", type=int, default=300, help="for the last column")
    for field in dataclasses.fields(Machine):
        kind = int if isinstance(field.default, int) else float
        text = f"{field.metadata['help']} (default: {field.default:g})"
        parser.add_argument(f"--{field.name}", type=kind, default=field.default, help=text)
    flags = parser.parse_args()
    cards = read_cards(flags.number_of_cards)
    values = {field.name: getattr(flags, field.name) for field in dataclasses.fields(Machine)}
    for name, value in values.items():
        if value < 0 or (value == 0 and name not in ("kernel_start", "message")):
            raise UserError(f"{name}: {value} must be greater than 0")
    if flags.save is not None:
        check_output_file("save", str(flags.save))
    if flags.counts is not None:
        if not flags.counts.is_file():
            raise UserError(f"counts: {flags.counts} does not exist; --config CONFIG --save FILE makes it")
        try:
            counts = StepCounts.load(flags.counts)
        except (ValueError, TypeError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"counts: {flags.counts} holds no counts as --save writes them ({reason})") from None
    else:
        counts = count_training_step(flags.config, flags.batch_size)
    if flags.save is not None:
        counts.save(flags.save)
    print(report(counts, Machine(**values), cards, flags.epochs))


def read_cards(text: str) -> list[int]:
    """`1,8,64` -> [1, 8, 64]."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) for part in parts):
        raise UserError(f"number_of_cards: {text!r} is not a list of numbers from 1 on, such as 1,8,64")
    return [int(part) for part in parts]


if __name__ == "__main__":
    run_main(main)
