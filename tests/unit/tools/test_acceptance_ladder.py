"""The ladder of tools/ascend_acceptance without a device: order, verdicts, record, and the choice of settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from focal.config import load_config
from focal.errors import UserError
from tools.ascend_acceptance import __main__ as command
from tools.ascend_acceptance import correctness, environment, recovery, settings, speed
from tools.ascend_acceptance.child import last_line, read_result, run_task
from tools.ascend_acceptance.ladder import (
    FAILED,
    NOT_REACHED,
    PASSED,
    SKIPPED,
    Outcome,
    Rung,
    RungFailed,
    RungSkipped,
    Session,
    as_record,
    as_table,
    climb,
)
from tools.ascend_acceptance.settings import Measured, fastest_safe, mindcv_row, yaml_snippet

REPOSITORY = Path(__file__).resolve().parents[3]


def session(tmp_path, target="CPU", quick=False, **figures) -> Session:
    """A session in which rungs have found `figures`, by name of the rung."""
    outcomes = {name.replace("_", " "): Outcome(name, PASSED, "", found) for name, found in figures.items()}
    return Session(target, quick, {}, None, 2, tmp_path, outcomes)


def passes(ladder: Session):
    return "fine", {"answer": 42}


def fails(ladder: Session):
    raise RungFailed("it is broken", seen=7)


def cannot_run(ladder: Session):
    raise RungSkipped("no such thing here")


# ---- the ladder ----


def test_the_first_failure_ends_the_ladder_and_names_itself(tmp_path):
    ladder, shown = session(tmp_path), []
    rungs = [Rung("one", passes), Rung("two", fails), Rung("three", passes), Rung("four", passes, needs_ascend=True)]
    assert not climb(rungs, ladder, shown.append)
    assert [(o.name, o.verdict, o.note) for o in shown] == [
        ("one", PASSED, "fine"),
        ("two", FAILED, "it is broken"),
        ("three", NOT_REACHED, "two failed"),
        ("four", NOT_REACHED, "two failed"),
    ]
    assert ladder.figure("one", "answer") == 42
    assert ladder.figure("two", "seen") == 7  # a failed rung says what it saw
    assert ladder.figure("three", "answer", "nothing") == "nothing"


def test_a_skipped_rung_ends_nothing(tmp_path):
    ladder = session(tmp_path)
    assert climb([Rung("card", fails, needs_ascend=True), Rung("other", cannot_run), Rung("last", passes)], ladder)
    assert [(o.verdict, o.note) for o in ladder.outcomes.values()] == [
        (SKIPPED, "needs an Ascend"),
        (SKIPPED, "no such thing here"),
        (PASSED, "fine"),
    ]


def test_a_rung_that_needs_an_ascend_runs_on_one(tmp_path):
    ladder = session(tmp_path, target="Ascend")
    assert not climb([Rung("card", fails, needs_ascend=True)], ladder)


def test_a_users_mistake_fails_a_rung_in_one_line(tmp_path):
    def mistaken(ladder):
        raise UserError("data_url: x does not exist")

    ladder = session(tmp_path)
    climb([Rung("data", mistaken)], ladder)
    assert as_table(list(ladder.outcomes.values())).splitlines()[-1].startswith("| data | failed | data_url: x does")
    assert as_record(list(ladder.outcomes.values()))[0]["verdict"] == FAILED


# ---- processes ----


def test_a_task_returns_its_figures_and_an_error_becomes_one_line(tmp_path):
    with pytest.raises(RungFailed, match="ModuleNotFoundError: .*no_such_module.* \\(log: .*broken.log\\)"):
        run_task(session(tmp_path), "no_such_module:function", "broken")


def test_a_process_that_leaves_no_result_is_told_by_its_last_words(tmp_path):
    log = tmp_path / "log"
    log.write_text("[WARNING] ME of no interest\nSegmentation fault\n[INFO] more\n", encoding="utf-8")
    assert last_line(log) == "Segmentation fault"
    with pytest.raises(RungFailed, match="the process ended with code -11: Segmentation fault"):
        read_result("ended with code -11", log, tmp_path / "missing.json")


# ---- driver ----

NPU_SMI = """
+------------------------------------------------------------------------------------------------+
| npu-smi 23.0.6                   Version: 23.0.6                                               |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     910B1               | OK            | 95.1        44                0    / 0             |
| 0                         | 0000:C1:00.0  | 0           0    / 0          3306 / 65536         |
+===========================+===============+====================================================+
| 1     910B1               | Alarm         | 95.1        44                0    / 0             |
| 0                         | 0000:C2:00.0  | 0           0    / 0          3306 / 65536         |
+===========================+===============+====================================================+
"""


def test_cards_and_their_health_are_read_from_npu_smi():
    assert environment.read_npu_smi(NPU_SMI) == {
        "driver": "23.0.6",
        "health": [["0", "910B1", "OK"], ["1", "910B1", "Alarm"]],
    }


@pytest.fixture
def npu_smi(tmp_path, monkeypatch):
    """Put a stand-in for npu-smi that prints a text on the path."""

    def put(text):
        (tmp_path / "text").write_text(text, encoding="utf-8")
        script = tmp_path / "npu-smi"
        script.write_text(f"#!/bin/sh\ncat {tmp_path / 'text'}\n", encoding="utf-8")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return put


def test_a_card_that_is_not_well_fails_the_driver(tmp_path, npu_smi):
    npu_smi(NPU_SMI)
    with pytest.raises(RungFailed, match="card 1: Alarm"):
        environment.driver(session(tmp_path, "Ascend"))
    npu_smi(NPU_SMI.replace("Alarm", "OK   "))
    assert environment.driver(session(tmp_path, "Ascend"))[0] == "driver 23.0.6, 2 x 910B1, all OK"


def test_a_machine_without_a_driver_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setattr(environment.shutil, "which", lambda name: None)
    monkeypatch.setattr(environment, "find_cards", lambda: 0)
    with pytest.raises(RungFailed, match="the driver is not installed"):
        environment.driver(session(tmp_path, "Ascend"))
    monkeypatch.setattr(environment, "find_cards", lambda: 8)
    assert "8 card(s)" in environment.driver(session(tmp_path, "Ascend"))[0]


# ---- comparison with stored figures ----


@pytest.fixture
def tasks(monkeypatch):
    """Replace the processes: each task answers with what is put under its name."""
    answers = {}

    def answer(session, task, name, **parameters):
        found = answers[task.partition(":")[2]]
        found = found(parameters) if callable(found) else found
        if isinstance(found, Exception):
            raise found
        return found

    for module in (correctness, environment, speed, recovery):
        monkeypatch.setattr(module, "run_task", answer)
    return answers


A2 = {"chip": "ascend910b", "jit_level": "O1"}
OLD = {"chip": "ascend910", "jit_level": "O2"}


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


# ---- speed ----


def test_every_combination_of_the_chip_is_timed_and_the_defaults_first(tmp_path):
    found = speed.combinations(session(tmp_path, "Ascend", MindSpore=A2))
    assert found[0] == {"jit_level": "auto", "amp_level": "O1", "dataset_sink_mode": False}
    product = {(c["jit_level"], c["amp_level"], c["dataset_sink_mode"]) for c in found}
    assert product == {(j, a, s) for j in ("auto", "O0", "O2") for a in ("O1", "O2", "bf16") for s in (False, True)}
    assert sum("kernel_launch_group" in c for c in found) == 1
    assert not any("attention" in c for c in found)
    old = speed.combinations(session(tmp_path, "Ascend", MindSpore=OLD))
    assert {c["jit_level"] for c in old} == {"auto", "O0"}  # graph kernels are not for a 910A
    assert {c["amp_level"] for c in old} == {"O1", "O2"}
    quick = speed.combinations(session(tmp_path, "Ascend", True, MindSpore=A2))
    assert {c["jit_level"] for c in quick} == {"auto", "O0", "O2"}
    assert {c["amp_level"] for c in quick} == {"O1"}
    with_flash = speed.combinations(session(tmp_path, "Ascend", MindSpore=A2, flash={"attention": "flash"}))
    assert with_flash[-1]["attention"] == "products"  # what flash has to beat


@pytest.mark.parametrize("found", [A2, OLD])
@pytest.mark.parametrize("quick", [False, True])
def test_every_combination_is_a_legal_configuration(tmp_path, found, quick):
    for chosen in speed.combinations(session(tmp_path, "Ascend", quick, MindSpore=found)):
        load_config(command.ASCEND_CONFIG, {"device_target": "Ascend", **chosen})
    for chosen in speed.combinations(session(tmp_path, "CPU", quick)):
        load_config(command.CPU_CONFIG, {"device_target": "CPU", **chosen})


def test_a_combination_that_fails_is_recorded_but_the_defaults_must_run(tmp_path, tasks):
    def timed(parameters):
        level = parameters["overrides"]["jit_level"]
        if level == "O2":
            return RungFailed("GE refuses it")
        return {"finite": True, "ms_per_step": 100.0 if level == "auto" else 50.0, "images_per_second": 1.0}

    tasks["measure"] = timed
    ladder = session(tmp_path, "Ascend", True, MindSpore=A2, gradients={"wrong": {"O0": "wrong"}})
    note, figures = speed.one_card(ladder)
    assert {row["error"] for row in figures["measured"]} == {"", "GE refuses it"}
    assert figures["fastest"]["jit_level"] == "auto"  # O0 is faster, but its gradients are wrong
    tasks["measure"] = RungFailed("nothing runs")
    with pytest.raises(RungFailed, match="jit_level auto, amp_level O1, dataset_sink_mode False: nothing runs"):
        speed.one_card(ladder)


def test_a_loss_that_is_not_finite_rules_a_combination_out(tmp_path, tasks):
    tasks["measure"] = lambda p: {
        "finite": p["overrides"]["jit_level"] == "auto", "ms_per_step": 9.0, "images_per_second": 1.0
    }  # fmt: skip
    _, figures = speed.one_card(session(tmp_path, "Ascend", True, MindSpore=A2))
    assert {row["settings"]["jit_level"] for row in figures["measured"] if not row["error"]} == {"auto"}


def test_data_that_is_slower_than_the_card_is_called_the_bottleneck(tmp_path, tasks):
    tasks["measure"] = {"images_per_second": 100.0, "workers": 4, "classes": 4}
    cards = {"images_per_second": 1600.0, "world_size": 8}
    note, figures = speed.data(session(tmp_path, all_cards=cards))
    assert figures["share_of_step"] == 2.0
    assert "DATA IS THE BOTTLENECK" in note
    tasks["measure"] = {"images_per_second": 1000.0, "workers": 4, "classes": 4}
    assert "BOTTLENECK" not in speed.data(session(tmp_path, all_cards=cards))[0]


# ---- what to set ----


def measured(level, amp, rate, error=""):
    return Measured({"jit_level": level, "amp_level": amp}, 64_000 / rate if rate else 0.0, rate, error)


def test_the_fastest_safe_settings_are_the_fastest_of_those_with_right_results():
    given = [("auto", "O1", 300), ("O2", "O1", 500), ("O0", "O2", 400), ("O0", "O1", 200)]
    rows = [measured(*row) for row in given]
    assert fastest_safe(rows, set()).settings == {"jit_level": "O2", "amp_level": "O1"}
    assert fastest_safe(rows, {("O2", "O1")}).settings["amp_level"] == "O2"
    assert fastest_safe(rows, {("O2", ""), ("O0", "")}).settings["jit_level"] == "auto"
    assert (
        fastest_safe([*rows, measured("O2", "O3", 509)], set()).settings["amp_level"] == "O1"
    )  # within 2 %: the first
    assert fastest_safe([measured("auto", "O1", 0, "it crashed")], set()) is None


def test_the_snippet_is_yaml_that_the_configuration_takes(tmp_path):
    chosen = {"jit_level": "O0", "amp_level": "bf16", "dataset_sink_mode": True, "kernel_launch_group": 2}
    text = yaml_snippet(chosen, "")
    assert "loss_scale: 1\n" in text  # bfloat16 needs none
    (tmp_path / "own.yaml").write_text(f"base: {command.ASCEND_CONFIG}\n{text}", encoding="utf-8")
    config = load_config(tmp_path / "own.yaml")
    assert (config.run.jit_level, config.step.amp_level, config.run.dataset_sink_mode) == ("O0", "bf16", True)
    assert yaml_snippet({"jit_level": "O1"}, "flash") == "jit_level: O1\nattention: flash\n"
    assert yaml_snippet({"attention": "products"}, "flash") == "attention: products\n"


FIGURES = {"arch": "focalv2_nano", "trained_parameters": 28_880_000, "batch_size": 256, "image_size": [224, 192],
           "jit_level": "O2", "compile_seconds": 226.4, "ms_per_step": 454.49,
           "images_per_second": 4506.154}  # fmt: skip


def test_a_row_has_the_columns_of_mindcvs_table():
    row = mindcv_row({**FIGURES, "world_size": 8})
    assert row == "| focalv2_nano | 28.88 | 8 | 256 | 224x192 | O2 | 226s | 454.49 | 4506.15 |  |  |"
    assert len({line.count("|") for line in [*settings.HEADER.splitlines(), row]}) == 1


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


# ---- the command ----


def test_the_record_holds_versions_verdicts_figures_rows_and_settings(tmp_path):
    chosen = {"jit_level": "auto", "amp_level": "O1"}
    row = {**FIGURES, "settings": chosen, "error": ""}
    ladder = session(tmp_path, "Ascend", MindSpore={"mindspore": "2.8.0", **A2}, CANN={"cann": "8.3"},
                     one_card={"measured": [row], "fastest": chosen},
                     all_cards={**FIGURES, "world_size": 8})  # fmt: skip
    record = json.loads(json.dumps(command.summary(ladder)))
    assert record["versions"]["mindspore"] == "2.8.0" and record["versions"]["cann"] == "8.3"
    assert record["passed"] and len(record["rungs"]) == 4
    assert [row.split("|")[3].strip() for row in record["mindcv_rows"]] == ["1", "8"]
    assert record["fastest_safe_settings"] == "jit_level: auto\namp_level: O1\n"
    assert not record["results_checked"]  # logits and gradients were left out
    for name in ("logits", "gradients"):
        ladder.outcomes[name] = Outcome(name, PASSED, "")
    assert command.summary(ladder)["results_checked"]
    ladder.outcomes["resume"] = Outcome("resume", FAILED, "it is broken")
    assert not command.summary(ladder)["passed"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["no_such_folder"], "data: no_such_folder does not exist"),
        (["--config", "no.yaml"], "config: no.yaml does not exist"),
        (["--rungs", "logits,speed"], "rungs: 'speed' is not one of driver, CANN, "),
        (["--devices", "-1"], "devices: -1 must be positive"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(tmp_path, monkeypatch, flags, message):
    monkeypatch.setattr(sys, "argv", ["ascend_acceptance", "--output", str(tmp_path / "out"), *flags])
    with pytest.raises(UserError, match=message) as caught:
        command.main()
    assert "\n" not in str(caught.value)


def test_a_machine_without_a_card_stops_at_the_driver_and_exits_with_1(tmp_path):
    line = ["bash", "scripts/ascend_acceptance.sh", "--device_target", "Ascend", "--output", str(tmp_path)]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(line, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "STOPPED at 'driver': no npu-smi" in done.stdout
    record = json.loads((tmp_path / "acceptance.json").read_text(encoding="utf-8"))
    assert not record["passed"]
    assert {rung["verdict"] for rung in record["rungs"]} == {FAILED, NOT_REACHED}
