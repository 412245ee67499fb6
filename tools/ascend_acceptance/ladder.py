"""The ladder itself: rungs in order, the first that fails ends it. Knows nothing of what a rung does."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional

from focal.errors import UserError

PASSED, FAILED, SKIPPED, NOT_REACHED = "passed", "failed", "skipped", "not reached"


class RungFailed(Exception):
    """A rung that failed: the message says in one line what was found; figures, if any, go into the record."""

    def __init__(self, message: str, **figures: Any) -> None:
        super().__init__(message)
        self.figures = figures


class RungSkipped(Exception):
    """A rung that cannot run here; the message says why."""


@dataclass(frozen=True)
class Outcome:
    """What a rung found.

    Attributes:
        name: of the rung.
        verdict: passed, failed, skipped or not reached.
        note: one line for the table.
        figures: for the record, by name.
        seconds: that it took.
    """

    name: str
    verdict: str
    note: str
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass
class Session:
    """What the rungs work with.

    Attributes:
        target: Ascend or CPU.
        quick: fewer combinations and steps.
        config: settings of the network whose speed is measured: a YAML file or the settings themselves.
        data: folder of pictures, or None for synthetic ones.
        devices: cards to use together.
        folder: takes everything that is written.
        outcomes: of the rungs so far, by name.
    """

    target: str
    quick: bool
    config: Any
    data: Optional[str]
    devices: int
    folder: Path
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def figure(self, rung: str, name: str, default: Any = None) -> Any:
        """A figure that an earlier rung has found, or the default."""
        outcome = self.outcomes.get(rung)
        return default if outcome is None else outcome.figures.get(name, default)


@dataclass(frozen=True)
class Rung:
    """One step of the ladder.

    Attributes:
        name: short, as in the table.
        run: does it; returns the note and the figures, or raises RungFailed or RungSkipped.
        needs_ascend: skipped on any other target.
    """

    name: str
    run: Callable[[Session], tuple[str, dict[str, Any]]]
    needs_ascend: bool = False


def climb(rungs: Sequence[Rung], session: Session, show: Callable[[Outcome], None] = lambda outcome: None) -> bool:
    """Run the rungs in order until one fails; returns whether none did.

    Args:
        rungs: the ladder.
        session: `outcomes` is filled in.
        show: called with each outcome as soon as it is known.
    """
    failed = ""
    for rung in rungs:
        if failed:
            outcome = Outcome(rung.name, NOT_REACHED, f"{failed} failed")
        elif rung.needs_ascend and session.target != "Ascend":
            outcome = Outcome(rung.name, SKIPPED, "needs an Ascend")
        else:
            outcome = _run(rung, session)
        session.outcomes[rung.name] = outcome
        show(outcome)
        if outcome.verdict == FAILED:
            failed = rung.name
    return not failed


def _run(rung: Rung, session: Session) -> Outcome:
    start = time.monotonic()
    figures: dict[str, Any] = {}
    try:
        note, figures = rung.run(session)
        verdict = PASSED
    except RungSkipped as reason:
        verdict, note = SKIPPED, str(reason)
    except RungFailed as failure:
        verdict, note, figures = FAILED, str(failure), failure.figures
    except (UserError, OSError) as error:
        verdict, note = FAILED, str(error)
    return Outcome(rung.name, verdict, note, figures, time.monotonic() - start)


def as_table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as a table in Markdown."""
    lines = ["| rung | verdict | found | seconds |", "| --- | --- | --- | ---: |"]
    lines += [f"| {o.name} | {o.verdict} | {o.note} | {o.seconds:.0f} |" for o in outcomes]
    return "\n".join(lines)


def as_record(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """The outcomes for JSON."""
    return [dataclasses.asdict(outcome) for outcome in outcomes]
