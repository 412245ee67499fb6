"""`device_target: auto`: what counts as a sign of an Ascend, and what becomes of settings for one on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from focal.config import ConfigError, config_for_model, config_from_command_line, device_target, load_config
from focal.config.device_target import find_target, fit_to_machine

FOR_ASCEND = {"amp_level": "O1", "device_num": 8, "dataset_sink_mode": True}


@pytest.fixture
def machine(monkeypatch):
    """Sets what `auto` finds."""
    return lambda target: monkeypatch.setattr(device_target, "find_target", lambda: target)


def test_any_sign_of_an_ascend_is_enough(tmp_path: Path):
    files = [str(tmp_path / "davinci*")]
    assert find_target({"PATH": "/bin"}, files) == "CPU"
    assert find_target({"ASCEND_HOME_PATH": "/opt/cann"}, files) == "Ascend"
    (tmp_path / "davinci3").touch()
    assert find_target({}, files) == "Ascend"


def test_on_an_ascend_auto_changes_nothing_else(machine, caplog):
    machine("Ascend")
    expected = load_config({**FOR_ASCEND, "device_target": "Ascend"})
    assert fit_to_machine(load_config(FOR_ASCEND)) == expected
    assert not caplog.records


def test_without_an_ascend_auto_is_one_process_in_float32_and_says_so(machine, caplog):
    machine("CPU")
    config = fit_to_machine(load_config(FOR_ASCEND))
    assert config == load_config({"device_target": "CPU", "amp_level": "O0"})
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    for change in ("amp_level O0 instead of O1", "device_num 1 instead of 8", "--device_target CPU keeps"):
        assert change in record.getMessage()
    caplog.clear()
    assert fit_to_machine(load_config({})).run.device_target == "CPU"
    assert not caplog.records, "nothing had to change"


def test_an_explicit_target_keeps_every_setting(machine):
    machine("CPU")
    config = load_config({"device_target": "CPU", "amp_level": "O1", "device_num": 2})
    assert fit_to_machine(config) == config


def test_several_servers_are_never_taken_for_a_laptop(machine):
    machine("CPU")
    config = load_config({"device_num": 16, "node_num": 2, "master_port": 8118})
    fitted = fit_to_machine(config)
    assert (fitted.run.device_target, fitted.run.device_num) == ("Ascend", 16)


def test_what_only_an_ascend_has_is_refused_without_one(machine):
    machine("CPU")
    with pytest.raises(ConfigError, match="attention: flash requires device_target Ascend, not CPU"):
        fit_to_machine(load_config({"attention": "flash", "amp_level": "O1"}))


def test_command_lines_resolve_auto(machine):
    for target, amp_level in (("CPU", "O0"), ("Ascend", "O1")):
        machine(target)
        flags = ["--arch", "focal_tiny_patch4_window7_224", "--device_num", "8"]
        of_flags, _ = config_from_command_line(flags, "")
        of_model = config_for_model({}, {"arch": "focal_tiny_patch4_window7_224", "amp_level": "O1"})
        for config in (of_flags, of_model):
            assert (config.run.device_target, config.step.amp_level) == (target, amp_level)
