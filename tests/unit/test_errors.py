"""Errors in one line."""

from __future__ import annotations

import pytest

from focal.errors import UserError, one_line, run_main, shown


def test_a_message_of_several_lines_becomes_one() -> None:
    assert one_line(ValueError("the bucket\n  is gone\n")) == "the bucket is gone"


def test_an_error_without_a_message_is_named_by_its_type() -> None:
    assert one_line(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_mindspores_call_stack_and_what_is_too_long_are_left_out() -> None:
    assert one_line(RuntimeError("no space\n\n--------\n- C++ Call Stack\n--------\nfile.cc:1")) == "no space"
    assert one_line(ValueError("x" * 1000), most=10) == "x" * 10


def test_a_locale_that_lacks_characters_of_a_path_is_one_error(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        "/data/\u4e2d".encode("ascii")
        return 0

    with pytest.raises(SystemExit) as end:
        run_main(main)
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "error: this locale (ascii) cannot represent '/data/\\u4e2d'; set LC_ALL=C.UTF-8 or PYTHONUTF8=1\n"
    )


def test_a_text_that_is_not_unicode_is_a_defect_and_keeps_its_traceback() -> None:
    with pytest.raises(UnicodeEncodeError):
        run_main(lambda: len("\udcff".encode()))


def test_a_value_in_a_message_is_shortened_however_large_it_is() -> None:
    assert shown([2, 2, "x", None, 0.5]) == "[2, 2, 'x', None, 0.5]"
    assert shown(1 << 20_000) == "an integer of 20001 bits"  # Python itself refuses to write it out
    doubling: list = ["lol"]
    for _ in range(60):
        doubling = [doubling, doubling]
    recursive: list = []
    recursive.append({"a": recursive})
    for value in (
        "x" * 10**6,
        doubling,
        recursive,
        list(range(10**5)),
        dict.fromkeys(range(999), doubling),
        b"b" * 10**6,
    ):
        assert len(shown(value)) < 500


def test_a_long_message_keeps_its_beginning_and_its_end() -> None:
    message = str(UserError("names the field " + "x" * 10**6 + " and the way out"))
    assert len(message) <= 2000
    assert message.startswith("names the field x") and message.endswith("x and the way out") and " [...] " in message
