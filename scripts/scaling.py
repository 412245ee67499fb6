"""Expected speed of training on 1 to 64 cards, on paper: python scripts/scaling.py --config configs/X.yaml [--cards 16]

Compiles the training step of the configuration (minutes; nothing runs, and no accelerator is needed), counts its
operations and bytes, and prints the table of docs/scaling.md for the machine that the flags describe. --save FILE keeps
the counts, --counts FILE uses them again.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.benchmark.scaling import Machine, StepCounts, count_training_step, report  # noqa: E402
from src.errors import UserError, run_main  # noqa: E402
from src.trainers.paths import check_output_file  # noqa: E402


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
        raise UserError(f"number_of_cards: {text!r} is no list of numbers from 1 on, such as 1,8,64")
    return [int(part) for part in parts]


if __name__ == "__main__":
    run_main(main)
