"""Who writes what where."""

from __future__ import annotations

from pathlib import Path

import pytest

from focal.distributed.logging import setup_logging
from focal.errors import UserError


def test_rank_0_prints_and_writes_its_log(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    setup_logging(0, str(tmp_path)).info("hello")
    assert "hello" in capsys.readouterr().out
    assert "rank 0 INFO hello" in (tmp_path / "log" / "rank_0.log").read_text()


def test_other_ranks_only_warn_on_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    logger = setup_logging(3, str(tmp_path))
    logger.info("quiet")
    logger.warning("loud")
    out = capsys.readouterr().out
    assert "quiet" not in out and "[rank 3]" in out and "loud" in out
    text = (tmp_path / "log" / "rank_3.log").read_text()
    assert "quiet" in text and "loud" in text


def test_setting_up_twice_logs_once(capsys: pytest.CaptureFixture) -> None:
    setup_logging(0)
    setup_logging(0).info("once")
    assert capsys.readouterr().out.count("once") == 1


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="train_url: .*file/log cannot be written .*or give another train_url"):
        setup_logging(0, str(tmp_path / "file"))


def test_a_resumed_job_appends(tmp_path: Path) -> None:
    for word in ("first", "second"):
        setup_logging(0, str(tmp_path)).info(word)
    text = (tmp_path / "log" / "rank_0.log").read_text()
    assert "first" in text and "second" in text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full, a disk that is always full")
def test_a_full_disk_takes_lines_of_the_file_and_none_of_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "rank_0.log").symlink_to("/dev/full")
    logger = setup_logging(0, str(tmp_path))
    for word in ("first", "second", "third"):
        logger.info(word)
    shown = capsys.readouterr()
    lines = [line.split(" ", 1)[1] for line in shown.out.splitlines()]
    warning = (
        f"WARNING {tmp_path}/log/rank_0.log cannot be written (No space left on device) and lacks lines from here on"
    )
    assert lines == ["INFO first", warning, "INFO second", "INFO third"] and shown.err == ""
