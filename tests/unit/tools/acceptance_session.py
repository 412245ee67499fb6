"""A session of tools/ascend_acceptance in which rungs have been climbed, and what they found on two chips."""

from __future__ import annotations

from tools.ascend_acceptance.ladder import PASSED, Outcome, Session

A2 = {"chip": "ascend910b", "jit_level": "O1"}

OLD = {"chip": "ascend910", "jit_level": "O2"}

FIGURES = {"arch": "focalv2_nano", "trained_parameters": 28_880_000, "batch_size": 256, "image_size": [224, 192],
           "jit_level": "O2", "compile_seconds": 226.4, "ms_per_step": 454.49,
           "images_per_second": 4506.154}  # fmt: skip


def session(tmp_path, target="CPU", quick=False, **figures) -> Session:
    """A session in which rungs have found `figures`, by name of the rung."""
    outcomes = {name.replace("_", " "): Outcome(name, PASSED, "", found) for name, found in figures.items()}
    return Session(target, quick, {}, None, 2, tmp_path, outcomes)
