"""Errors in one line."""

from __future__ import annotations

from focal.errors import one_line


def test_a_message_of_several_lines_becomes_one() -> None:
    assert one_line(ValueError("the bucket\n  is gone\n")) == "the bucket is gone"


def test_an_error_without_a_message_is_named_by_its_type() -> None:
    assert one_line(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_mindspores_call_stack_and_what_is_too_long_are_left_out() -> None:
    assert one_line(RuntimeError("no space\n\n--------\n- C++ Call Stack\n--------\nfile.cc:1")) == "no space"
    assert one_line(ValueError("x" * 1000), most=10) == "x" * 10
