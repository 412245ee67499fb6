"""Expected speed of training on Ascends, on paper: python tools/scaling [--config configs/X.yaml]

Prints the tables of docs/scaling.md from the counts in docs/scaling/. `--recount tiny small base` compiles the steps of
these networks for an Ascend first (tools/ascend_dry_run; an hour on 2 cores, 13 GB of memory), keeps their counts and
writes the tables into docs/scaling.md. --config counts one configuration, and --save keeps its counts; --counts reads
such a file. Flags change the machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "src"), str(Path(__file__).resolve().parents[2])]

from focal.checkpoint.paths import check_output_file  # noqa: E402
from focal.errors import UserError, run_main  # noqa: E402
from focal.files import write_text  # noqa: E402
from tools.ascend_dry_run.cases import ATLAS_A2, Case  # noqa: E402
from tools.ascend_dry_run.simulate import dry_runs  # noqa: E402
from tools.scaling import report  # noqa: E402
from tools.scaling.counts import StepCounts, step_counts  # noqa: E402
from tools.scaling.machine import BY_HOST, CHIPS, SUNK, Machine  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENT, COUNTS = REPOSITORY / "docs" / "scaling.md", REPOSITORY / "docs" / "scaling"
BEGIN, END = "<!-- written by tools/scaling: begin -->", "<!-- written by tools/scaling: end -->"
NETWORKS = {"Focal-fast-T": "tiny", "Focal-fast-S": "small", "Focal-fast-B": "base"}
LEVELS = ("O0", "O1")
RANKS = 8
# Name, chip, milliseconds a step on 8 cards: the README files of configs/swintransformer and configs/swintransformerv2
# in mindcv (MindSpore 2.3.1, jit_level O2, amp_level O2). "910*" there is Atlas A2.
PUBLISHED = (
    ("swin_tiny", "910A", 454.49),
    ("swin_tiny", "A2", 466.6),
    ("swinv2_tiny_window8", "910A", 317.19),
    ("swinv2_tiny_window8", "A2", 335.18),
)


def main() -> None:
    """Read the flags, count or load, print."""
    flags = _parser().parse_args()
    if flags.save is not None:
        check_output_file("save", str(flags.save))
    if flags.config is not None or flags.counts is not None:
        machine = read_machine(flags)
        cards = read_cards(flags.number_of_cards)
        counts = (
            StepCounts.load(flags.counts) if flags.counts else count(flags.config, flags.jit_level, flags.batch_size)
        )
        if flags.save is not None:
            counts.save(flags.save)
        print(tables_of_one(counts, machine, cards))
        return
    for network in flags.recount or ():
        for level in LEVELS:
            print(f"compiling Focal-fast {network} at jit_level {level}", file=sys.stderr)
            config = REPOSITORY / "configs" / f"focalv2_{network}_useconv_patch4_window7_224.yaml"
            count(str(config), level, 0).save(COUNTS / f"{network}_{level}.json")
    if flags.recount is not None:
        write_document()
    print(tables_of_document())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--recount", nargs="*", choices=tuple(NETWORKS.values()), metavar="NETWORK",
        help=f"count {', '.join(NETWORKS.values())} again, and write the tables into docs/scaling.md; "
        "without a network: write the tables from the counts that are there",
    )  # fmt: skip
    source.add_argument("--config", help="YAML file of one training, to count")
    source.add_argument("--counts", type=Path, help="counts that --save kept, such as docs/scaling/small_O0.json")
    parser.add_argument("--jit_level", choices=LEVELS, default="O0", help="with --config")
    parser.add_argument("--batch_size", type=int, default=0, help="images per card; default: the configuration's")
    parser.add_argument("--save", type=Path, help="file to keep the counts of --config in")
    parser.add_argument("--number_of_cards", default="1,2,4,8,16,32,64", help="rows of the table of --config, --counts")
    parser.add_argument("--chip", choices=tuple(CHIPS), default="A2", help="where the values below come from")
    for field in dataclasses.fields(Machine):
        kind = int if isinstance(field.default, int) else float
        parser.add_argument(f"--{field.name}", type=kind, help=field.metadata["help"])
    return parser


def read_machine(flags: argparse.Namespace) -> Machine:
    """The chip's machine with what the flags change."""
    values = {field.name: getattr(flags, field.name) for field in dataclasses.fields(Machine)}
    given = {name: value for name, value in values.items() if value is not None}
    for name, value in given.items():
        if value < 0 or (value == 0 and name not in ("kernel_start", "message")):
            raise UserError(f"{name}: {value} must be greater than 0")
    return dataclasses.replace(CHIPS[flags.chip], **given)


def read_cards(text: str) -> list[int]:
    """`1,8,64` -> [1, 8, 64]."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) for part in parts):
        raise UserError(f"number_of_cards: {text!r} is not a list of numbers from 1 on, such as 1,8,64")
    return [int(part) for part in parts]


def count(config: str, jit_level: str, batch_size: int) -> StepCounts:
    """The kernels of a configuration's training step on eight Atlas A2 cards; compiles it."""
    name = Path(config).stem
    case = Case(config, ranks=RANKS, soc=ATLAS_A2, jit_level=jit_level, batch=batch_size)
    return step_counts(name, case, dry_runs({name: case}, list_kernels=True)[name])


def tables_of_one(counts: StepCounts, machine: Machine, cards: Sequence[int]) -> str:
    """The figures of one step, as Markdown."""
    parts = [
        f"### {counts.name}, {counts.batch} images per card, {counts.soc}, jit_level {counts.jit_level}",
        report.step_table({counts.name: counts}, {}),
        report.primitive_table({counts.jit_level: counts}),
        report.kernel_table(counts),
        "Launched by the host, at most:",
        report.scaling_table(counts, machine, BY_HOST.most, cards),
        "Sunk to the device:",
        report.scaling_table(counts, machine, SUNK.most, cards),
    ]
    return "\n\n".join(parts)


def tables_of_document() -> str:
    """The tables of docs/scaling.md, from the counts beside it."""
    before = json.loads((COUNTS / "before.json").read_text(encoding="utf-8"))
    networks = {
        name: {level: StepCounts.load(COUNTS / f"{short}_{level}.json") for level in LEVELS}
        for name, short in NETWORKS.items()
        if all((COUNTS / f"{short}_{level}.json").is_file() for level in LEVELS)
    }
    steps = {f"{name}, {level}": counts for name, levels in networks.items() for level, counts in levels.items()}
    swin = {name: StepCounts.load(COUNTS / f"{name}.json") for name in dict.fromkeys(name for name, _, _ in PUBLISHED)}
    small = networks["Focal-fast-S"]
    parts = [
        "### Kernels and bytes of a step, 64 images, rank 0 of 8, Atlas A2",
        f"Before the arrow: commit {before['commit']}.",
        report.step_table(steps, before["steps"]),
        "### Primitives of Focal-fast-S",
        report.primitive_table(small),
        "### Kernels of Focal-fast-S at O0",
        report.kernel_table(small["O0"]),
        "### Published steps of mindcv, 8 cards, and the formula",
        report.published_table(swin, PUBLISHED),
        "### Expected speed, 64 images per card",
        report.speed_table(networks),
        "### Focal-fast-S on several cards: Atlas A2, O0, a host at its slowest",
        report.scaling_table(small["O0"], CHIPS["A2"], BY_HOST.most, [1, 2, 4, 8, 16, 32, 64]),
        "### Focal-fast-S on several cards: 910A, O2",
        report.scaling_table(small["O0"], CHIPS["910A"], SUNK.most, [1, 2, 4, 8, 16, 32, 64]),
    ]
    return "\n\n".join(parts)


def write_document() -> None:
    """Put the tables into docs/scaling.md, between the two marks."""
    head, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    _, found, tail = rest.partition(END)
    if not found:
        raise UserError(f"{DOCUMENT} lacks the lines {BEGIN!r} and {END!r}, between which the tables go")
    write_text(DOCUMENT, f"{head}{BEGIN}\n\n{tables_of_document()}\n\n{END}{tail}")


if __name__ == "__main__":
    run_main(main)
