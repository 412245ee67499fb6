"""tools/drill: the table tells what held, and a surprise in one fault neither ends the drill nor counts as held."""

from __future__ import annotations

from tools.drill.__main__ import outcome_of
from tools.drill.outcome import Outcome, table


def test_the_table_has_a_row_for_each_fault_with_its_verdict() -> None:
    outcomes = [Outcome("a", "b", "c", True), Outcome("d", "e", "f", False), Outcome("g", "h", "i", None)]
    assert table(outcomes).splitlines()[2:] == [
        "| a | b | c | held |",
        "| d | e | f | BROKEN |",
        "| g | h | i | not tried |",
    ]


def test_a_fault_that_the_drill_did_not_expect_is_a_broken_promise() -> None:
    def surprising() -> Outcome:
        raise ValueError("no such thing")

    outcome = outcome_of(surprising)
    assert outcome.held is False and outcome.fault == "surprising" and "ValueError: no such thing" in outcome.happened
