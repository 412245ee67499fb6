"""What each chip computes in, how it reports overflow, and what it cannot do. No chip is needed: its name is given."""

from __future__ import annotations

import mindspore as ms
import pytest

from focal.distributed import chip as chip_module
from focal.distributed.chip import (
    OperatorPrecision,
    operator_precision,
    refuse_unsupported,
    resolve_jit_level,
    saturates_on_overflow,
)


@pytest.mark.parametrize(
    "chip, mode, has_hf32",
    [
        ("ascend910", "allow_fp32_to_fp16", False),  # 910A: must_keep_origin_dtype makes float32 products an error
        ("ascend310p", "allow_fp32_to_fp16", False),
        ("ascend910b", "must_keep_origin_dtype", True),  # A2: allow_fp32_to_fp16 takes float32 products away
        ("ascend910_93", "must_keep_origin_dtype", True),
        ("ascend950", "must_keep_origin_dtype", True),  # a chip that this code does not know
    ],
)
def test_each_chip_gets_the_precision_mode_it_supports(chip, mode, has_hf32):
    assert operator_precision(chip) == OperatorPrecision(mode, has_hf32)


@pytest.mark.parametrize(
    "chip, level",
    [
        ("ascend910", "O2"),
        ("ascend910b", "O1"),
        ("ascend910_93", "O1"),
        ("ascend950", "O1"),  # a chip that this code does not know
        ("ascend310p", ""),
        ("", ""),  # CPU and GPU
    ],
)
def test_auto_takes_the_jit_level_that_suits_the_chip(chip, level):
    assert resolve_jit_level("auto", chip) == level


@pytest.mark.parametrize("chip", ["ascend910", "ascend910b", ""])
@pytest.mark.parametrize("level", ["O0", "O1", "O2"])
def test_a_jit_level_that_is_asked_for_is_taken_on_every_chip(chip, level):
    assert resolve_jit_level(level, chip) == level


def on(monkeypatch, target, chip):
    monkeypatch.setattr(chip_module, "ascend_chip", lambda: chip)
    monkeypatch.setattr(ms, "get_context", lambda name: {"device_target": target}[name])


@pytest.mark.parametrize("target, chip", [("Ascend", "ascend910b"), ("Ascend", "ascend910_93"), ("GPU", "")])
def test_bf16_is_accepted_on_every_chip_but_a_910a(monkeypatch, target, chip):
    on(monkeypatch, target, chip)
    refuse_unsupported("bf16")


@pytest.mark.parametrize("level", ["O0", "O1", "O2", "O3"])
def test_every_other_level_is_accepted_on_a_910a(monkeypatch, level):
    on(monkeypatch, "Ascend", "ascend910")
    refuse_unsupported(level)


@pytest.mark.parametrize(
    "target, chip, mode, saturates",
    [
        ("CPU", None, None, False),
        ("CPU", None, "SATURATION_MODE", False),
        ("Ascend", "ascend910", None, True),
        ("Ascend", "ascend910", "INFNAN_MODE", True),
        ("Ascend", "ascend910b", None, False),
        ("Ascend", "ascend910b", "INFNAN_MODE", False),
        ("Ascend", "ascend910b", "SATURATION_MODE", True),
    ],
)
def test_a_910a_saturates_and_a_910b_only_when_told_to(monkeypatch, target, chip, mode, saturates):
    on(monkeypatch, target, chip)
    monkeypatch.delenv("MS_ASCEND_CHECK_OVERFLOW_MODE", raising=False)
    if mode is not None:
        monkeypatch.setenv("MS_ASCEND_CHECK_OVERFLOW_MODE", mode)
    assert saturates_on_overflow() is saturates
