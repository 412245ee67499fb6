"""The atomic write: a reader sees the old file or the new one, never a part, whatever happens in between."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from focal import files
from focal.files import atomic_write, finite_or_none, is_temporary, read_json, write_json, write_text


def test_the_new_file_takes_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    write_text(path, "old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old" and temporary.suffix == ".json" and is_temporary(temporary)
    assert path.read_text() == "new" and not is_temporary(path)
    assert os.listdir(path.parent) == ["a.json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_the_new_file_is_on_the_disk_before_it_replaces_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    real_sync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda number: (events.append("sync"), real_sync(number)))
    monkeypatch.setattr(files.os, "replace", lambda *names: (events.append("replace"), real_replace(*names)))
    with atomic_write(tmp_path / "a", before_replace=lambda: events.append("make room")) as temporary:
        temporary.write_text("x")
        events.append("written")
    assert events == ["written", "sync", "make room", "replace", "sync"]


def test_what_a_crash_left_is_overwritten(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a") as temporary:
        temporary.write_text("x")
    temporary.write_text("left by a crash")
    write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new" and os.listdir(tmp_path) == ["a"]


def test_json_round_trip_and_files_that_are_not_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": [1, None]}, indent=1)
    assert read_json(tmp_path / "a.json") == {"x": [1, None]}
    (tmp_path / "a.json").write_text('{"x": [1,')
    assert read_json(tmp_path / "a.json") is None and read_json(tmp_path / "none.json") is None


def test_numbers_that_json_cannot_represent_become_none() -> None:
    assert finite_or_none({"a": float("nan"), "b": float("-inf"), "c": 1.5, "d": "nan"}) == {
        "a": None,
        "b": None,
        "c": 1.5,
        "d": "nan",
    }
