"""Results of an earlier training are moved aside, never mixed with those of another."""

from __future__ import annotations

from pathlib import Path

import pytest

from focal.checkpoint.paths import check_output_file, set_aside_earlier_results
from focal.errors import UserError


@pytest.mark.parametrize("result", ["checkpoints/last.ckpt", "best/best.ckpt", "metrics.jsonl"])
def test_any_result_is_moved_with_all_that_belongs_to_it(tmp_path: Path, result: str) -> None:
    (tmp_path / result).parent.mkdir(exist_ok=True)
    (tmp_path / result).write_text("earlier")
    (tmp_path / "config.yaml").write_text("earlier")
    (tmp_path / "mine.txt").write_text("mine")
    set_aside_earlier_results(str(tmp_path))
    assert (tmp_path / "earlier-1" / result).read_text() == "earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["earlier-1", "mine.txt"]
    (tmp_path / "metrics.jsonl").write_text("next")
    set_aside_earlier_results(str(tmp_path))
    assert (tmp_path / "earlier-2" / "metrics.jsonl").read_text() == "next"


def test_a_start_that_failed_at_once_leaves_nothing_to_move(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("x")
    (tmp_path / "metrics.jsonl").write_text("")
    set_aside_earlier_results(str(tmp_path))
    set_aside_earlier_results(str(tmp_path / "not_there"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "metrics.jsonl"]


def test_an_output_file_is_checked_before_and_not_changed(tmp_path: Path) -> None:
    check_output_file("json", str(tmp_path / "new" / "a.json"))
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "b.json").write_text("{}")
    check_output_file("json", str(tmp_path / "b.json"))
    assert (tmp_path / "b.json").read_text() == "{}"
    for bad in (tmp_path, tmp_path / "b.json" / "c.json"):
        with pytest.raises(UserError, match="json: .* cannot be written"):
            check_output_file("json", str(bad))
