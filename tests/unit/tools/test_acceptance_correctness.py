"""The rungs of tools/ascend_acceptance that judge results: which of them fail, and which rule a level out."""

from __future__ import annotations

import pytest

from tests.unit.tools.acceptance_session import A2, OLD, session
from tools.ascend_acceptance import correctness, recovery
from tools.ascend_acceptance.ladder import RungFailed, RungSkipped


@pytest.mark.parametrize(
    ("target", "found", "levels"),
    [("CPU", {}, ["auto"]), ("Ascend", A2, ["auto", "O0", "O2"]), ("Ascend", OLD, ["auto", "O0"])],
)
def test_auto_is_tried_first_and_then_the_other_levels_of_the_chip(tmp_path, target, found, levels):
    assert correctness.jit_levels(session(tmp_path, target, MindSpore=found)) == levels


def test_wrong_logits_of_auto_fail_and_those_of_another_level_only_rule_it_out(tmp_path, tasks):
    right = {"O0": 1e-6, "O1": 5e-3, "O2": 5e-3, "O3": 5e-3, "bf16": 3e-2}
    tasks["logits"] = lambda p: {**right, "O2": 0.5} if p["jit_level"] == "O2" else right
    ladder = session(tmp_path, "Ascend", MindSpore=A2)
    note, figures = correctness.logits(ladder)
    assert "not usable: O2 O2" in note
    assert figures["wrong"] == {"O2 O2": "logits deviate by 5.0e-01"}
    tasks["logits"] = {**right, "O1": float("nan")}
    with pytest.raises(RungFailed, match="auto O1: logits deviate by nan"):
        correctness.logits(ladder)


def test_a_level_that_crashes_is_ruled_out_and_the_default_one_fails(tmp_path, tasks):
    crash = RungFailed("the process ended with code -11")
    tasks["logits"] = lambda p: crash if p["jit_level"] == "O2" else {"O0": 0.0}
    assert "O2 bf16" in correctness.logits(session(tmp_path, "Ascend", MindSpore=A2))[1]["wrong"]
    tasks["gradients"] = lambda p: crash if p["jit_level"] == "auto" else {"deviation": 0.0, "of": "x", "compared": 1}
    with pytest.raises(RungFailed, match="code -11"):
        correctness.gradients(session(tmp_path, "Ascend", MindSpore=A2))


def test_a_910a_is_held_to_the_precision_of_float16_and_others_to_that_of_float32(tmp_path, tasks):
    tasks["gradients"] = {"deviation": 2e-2, "of": "head.weight", "compared": 130}
    assert "130 norms" in correctness.gradients(session(tmp_path, "Ascend", MindSpore=OLD))[0]
    with pytest.raises(RungFailed, match=r"head\.weight deviates by 2\.0e-02"):
        correctness.gradients(session(tmp_path, "Ascend", MindSpore=A2))


def test_a_trajectory_that_leaves_the_stored_one_fails(tmp_path, tasks):
    tasks["trajectory"] = {"first_five": 1e-5, "all": 0.2, "skipped": 0}
    with pytest.raises(RungFailed, match="by 2e-01 in 60"):
        correctness.trajectory(session(tmp_path))
    tasks["trajectory"] = {"first_five": 1e-5, "all": 1e-3, "skipped": 0}
    assert "1e-03 in 60" in correctness.trajectory(session(tmp_path))[0]


SOUND = {"skipped": 9, "skipped_steps_change_weights": False, "scale_halves": True, "finite_step_found": True,
         "finite_step_trains": True}  # fmt: skip


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"skipped": 0}, "overflow is not noticed"),
        ({"skipped_steps_change_weights": True}, "a skipped step changes weights"),
        ({"scale_halves": False}, "does not halve"),
        ({"finite_step_found": False}, "no finite step after 9"),
        ({"finite_step_trains": False}, "a finite step does not train"),
    ],
)
def test_every_fault_in_the_handling_of_overflow_is_named(tmp_path, tasks, broken, message):
    tasks["overflow"] = {**SOUND, **broken}
    with pytest.raises(RungFailed, match=message):
        correctness.overflow(session(tmp_path))
    tasks["overflow"] = SOUND
    assert correctness.overflow(session(tmp_path))[0].startswith("9 steps skipped")


def test_a_checkout_without_flash_skips_its_rung(tmp_path, tasks):
    tasks["compare_flash_with_products"] = {"available": False, "why": "not available in this checkout"}
    with pytest.raises(RungSkipped, match="not available in this checkout"):
        correctness.flash(session(tmp_path, "Ascend"))


def test_losses_of_different_length_are_infinitely_different():
    assert recovery.largest_difference([1.0, 2.0], [1.0, 2.0]) == 0.0
    assert recovery.largest_difference([1.0, 2.0], [1.0, 2.2]) == pytest.approx(0.1)
    assert recovery.largest_difference([1.0, 2.0], [1.0]) == float("inf")


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"step_was": "compiled", "losses": [1.0]}, "compiled again"),
        ({"step_was": "loaded from x", "losses": [1.1]}, "losses differ by 1e-01"),
    ],
)
def test_a_cache_that_is_not_used_or_gives_other_losses_fails(tmp_path, tasks, second, message):
    first = {"step_was": "compiled", "losses": [1.0], "compile_seconds": 9.0}
    answers = iter([first, {**first, **second}])
    tasks["measure"] = lambda parameters: next(answers)
    with pytest.raises(RungFailed, match=message):
        recovery.compile_cache(session(tmp_path))
