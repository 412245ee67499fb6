"""What a fault did, and the table of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional


@dataclass(frozen=True)
class Outcome:
    """The row of one fault.

    Attributes:
        fault: what went wrong.
        injected: how it was brought about.
        happened: what was seen, in a few words.
        held: whether the promise of docs/reliability.md was kept; None if the fault cannot be made on this machine.
    """

    fault: str
    injected: str
    happened: str
    held: Optional[bool]

    @property
    def verdict(self) -> str:
        return {True: "held", False: "BROKEN", None: "not tried"}[self.held]


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as a table in Markdown."""
    rows = [(outcome.fault, outcome.injected, outcome.happened, outcome.verdict) for outcome in outcomes]
    lines = ["| fault | injected how | what happened | verdict |", "| --- | --- | --- | --- |"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
