"""The ladder of tools/ascend_acceptance without a device: order, verdicts, processes, record, the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from focal.errors import UserError
from tests.unit.tools.acceptance_session import A2, FIGURES, session
from tools.ascend_acceptance import __main__ as command
from tools.ascend_acceptance import environment
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

REPOSITORY = Path(__file__).resolve().parents[3]


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
