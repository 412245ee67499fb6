"""The formulas of docs/scaling.md, by hand; and that its figures are those of the counts beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tools.scaling import (
    Machine,
    StepCounts,
    all_reduce_seconds,
    exposed_seconds,
    report,
    scaling_row,
    step_seconds,
)

DOCS = Path(__file__).resolve().parents[3] / "docs"
PLAIN = Machine(peak=100.0, bandwidth=10.0, matrix_fraction=1.0, memory_fraction=1.0, kernel_start=0.0, message=0.0)


def counts() -> StepCounts:
    """One kernel of 300 operations and 10 bytes, two of 20 bytes; fused only the first; two buckets of 40 bytes."""
    return StepCounts("x", 4, ((1, 300.0, 10.0), (2, 0.0, 20.0)), ((1, 300.0, 10.0),), (40, 40))


def test_a_kernel_takes_the_longer_of_computing_and_moving() -> None:
    assert step_seconds(counts(), PLAIN, fused=False) == 3.0 + 2 * 2.0
    assert step_seconds(counts(), PLAIN, fused=True) == 3.0
    slower = replace(PLAIN, matrix_fraction=0.5, memory_fraction=0.25, kernel_start=0.1)
    assert step_seconds(counts(), slower, fused=False) == pytest.approx(6.1 + 2 * 8.1)


def test_a_ring_all_reduce_takes_the_pace_of_its_slowest_link() -> None:
    machine = replace(PLAIN, link=10.0, network=5.0, cards=4, message=0.5)
    assert all_reduce_seconds(80.0, 1, machine) == 0.0
    assert all_reduce_seconds(80.0, 4, machine) == pytest.approx(2 * 3 * (2.0 + 0.5))
    assert all_reduce_seconds(80.0, 8, machine) == pytest.approx(2 * 7 * (2.0 + 0.5))  # the network is slower


def test_only_what_outlasts_the_backward_pass_costs_time() -> None:
    machine = replace(PLAIN, link=40.0, cards=2)  # a bucket of 40 takes 1 s over two cards
    # Backward pass 4 s: buckets ready after 2 and 4 s, sent after 3 and 5 s.
    assert exposed_seconds(counts(), 2, 6.0, machine) == pytest.approx(1.0)
    assert exposed_seconds(counts(), 1, 6.0, machine) == 0.0
    slow = replace(machine, link=10.0)  # 4 s each: sent after 6 and 10 s
    assert exposed_seconds(counts(), 2, 6.0, slow) == pytest.approx(6.0)


def test_the_limiting_part_of_a_cluster_is_named() -> None:
    roomy = replace(PLAIN, link=1e9, network=1e9, cards=2, cores=100, core_images=10.0)
    row = scaling_row(counts(), 2, roomy, fused=False)
    assert row.limit == "card" and row.efficiency == pytest.approx(1.0)
    assert row.images_per_second == pytest.approx(2 * 4 / 7.0)
    assert row.cores_needed == pytest.approx(2 * 4 / 7.0 / 10)
    host = scaling_row(counts(), 2, replace(roomy, cores=1, core_images=0.5), fused=False)
    assert host.limit == "host" and host.images_per_second == pytest.approx(0.5)
    assert scaling_row(counts(), 2, replace(roomy, link=10.0), fused=False).limit == "links"
    assert scaling_row(counts(), 4, replace(roomy, network=10.0), fused=False).limit == "network"


@pytest.mark.parametrize("name", ["swin_tiny", "focalv2_small_useconv"])
def test_the_document_holds_the_figures_of_its_counts(name: str) -> None:
    table = report(StepCounts.load(DOCS / f"scaling_{name}.json"), Machine(), [1, 2, 4, 8, 16, 32, 64], 300)
    text = (DOCS / "scaling.md").read_text(encoding="utf-8")
    for line in table.splitlines():
        assert line in text
