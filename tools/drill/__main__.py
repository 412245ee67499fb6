"""Break trainings on purpose and print what happened: python tools/drill [--times 20] [--only kills soak]

Real trainings of a very small network are killed, starved of disk, handles and environment, or run for long, and held
against what docs/reliability.md promises. All of it, with 20 kills, takes about half an hour on 2 cores; the tests that
docs/reliability.md names are the quick form. Ends with 1 if a promise was broken.
"""

from __future__ import annotations

import argparse
import functools
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "src"), str(Path(__file__).resolve().parents[2])]

from focal.errors import one_line, run_main  # noqa: E402
from tools.drill import kills, soak, surroundings  # noqa: E402
from tools.drill.outcome import Outcome, table  # noqa: E402

Fault = Callable[[], Outcome]


def kill_faults(folder: Path, arguments: argparse.Namespace) -> Iterator[Fault]:
    expected = kills.undisturbed(folder)
    share, rest = divmod(arguments.times, len(kills.VICTIMS))
    for number, victim in enumerate(kills.VICTIMS):
        times = share + (number < rest)
        if times:
            yield functools.partial(kills.kill_at_random, folder, victim, times, expected)


def surrounding_faults(folder: Path, arguments: argparse.Namespace) -> Iterator[Fault]:
    for fault in surroundings.FAULTS:
        yield functools.partial(fault, folder)


def soak_faults(folder: Path, arguments: argparse.Namespace) -> Iterator[Fault]:
    yield functools.partial(soak.soak, folder, arguments.epochs)


PARTS: dict[str, Callable[[Path, argparse.Namespace], Iterator[Fault]]] = {
    "kills": kill_faults,
    "surroundings": surrounding_faults,
    "soak": soak_faults,
}


def outcome_of(fault: Fault) -> Outcome:
    """What a fault did; one that the drill itself did not expect is a broken promise as well, and ends nothing."""
    try:
        return fault()
    except Exception as error:
        function = fault.func if isinstance(fault, functools.partial) else fault
        return Outcome(function.__name__, "see tools/drill", f"{type(error).__name__}: {one_line(error, 300)}", False)


def main() -> int:
    """Run the parts that were asked for, print a line as each fault is over, and the table at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run (default: all)")
    parser.add_argument("--times", type=int, default=20, help="kills, over all victims (%(default)s)")
    parser.add_argument("--epochs", type=int, default=30, help="epochs of the soak (%(default)s)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31), help="of the moments")
    parser.add_argument("--folder", type=Path, help="new folder to work in and keep (default: a temporary one)")
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    print(f"seed {arguments.seed}", flush=True)
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="focal-drill-") as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for part in arguments.only:
            for outcome in map(outcome_of, PARTS[part](folder, arguments)):
                print(f"{outcome.verdict}: {outcome.fault}: {outcome.happened}", flush=True)
                outcomes.append(outcome)
    print("\n" + table(outcomes))
    return 1 if any(outcome.held is False for outcome in outcomes) else 0


if __name__ == "__main__":
    run_main(main)
