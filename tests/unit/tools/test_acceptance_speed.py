"""The rungs of tools/ascend_acceptance that measure speed, and the settings that it recommends."""

from __future__ import annotations

import pytest

from focal.config import load_config
from tests.unit.tools.acceptance_session import A2, FIGURES, OLD, session
from tools.ascend_acceptance import __main__ as command
from tools.ascend_acceptance import settings, speed
from tools.ascend_acceptance.ladder import RungFailed
from tools.ascend_acceptance.settings import Measured, fastest_safe, mindcv_row, yaml_snippet

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


def test_a_row_has_the_columns_of_mindcvs_table():
    row = mindcv_row({**FIGURES, "world_size": 8})
    assert row == "| focalv2_nano | 28.88 | 8 | 256 | 224x192 | O2 | 226s | 454.49 | 4506.15 |  |  |"
    assert len({line.count("|") for line in [*settings.HEADER.splitlines(), row]}) == 1
