"""Ranks that compute on the cores of one machine take OpenMP threads by their share of them."""

from __future__ import annotations

import os
from typing import Optional

import pytest

from focal.distributed import cores
from focal.distributed.cores import available_cores, share_cores


@pytest.mark.parametrize(
    ("available", "processes", "threads"), [(2, 1, None), (2, 2, "1"), (8, 2, "4"), (7, 2, "3"), (2, 8, "1")]
)
def test_each_rank_has_its_share_of_the_cores(
    monkeypatch: pytest.MonkeyPatch, available: int, processes: int, threads: Optional[str]
) -> None:
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(cores, "available_cores", lambda: available)
    share_cores(processes)
    assert os.environ.get("OMP_NUM_THREADS") == threads


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"OMP_NUM_THREADS": "3"})
    share_cores(2)
    assert os.environ["OMP_NUM_THREADS"] == "3"


def test_a_process_has_a_core() -> None:
    assert available_cores() >= 1
