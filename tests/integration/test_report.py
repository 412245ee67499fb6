"""scripts/report.py on what a real training has left (quickstart, 8 epochs), with the real digits."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from focal.predictions import Predictions
from focal.report.page import missing_packages
from scripts.make_digits import write_digits
from tests.integration.jobs import REPOSITORY

FINISHED = Path(__file__).parent / "finished_run"


def run_report(*arguments, **options):
    line = [sys.executable, "scripts/report.py", *map(str, arguments)]
    return subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, **options)


@pytest.mark.skipif(bool(missing_packages()), reason="reports need jinja2 and matplotlib: pip install '.[report]'")
def test_a_page_is_made_from_a_finished_run(tmp_path):
    run = shutil.copytree(FINISHED, tmp_path / "run")
    digits = write_digits(str(tmp_path / "digits"))
    done = run_report(run, "--data_url", digits)
    assert done.returncode == 0, done.stderr
    assert str(run / "report.html") in done.stdout
    text = (run / "report.html").read_text(encoding="utf-8")
    wrong = int((~Predictions.load(run / "predictions.npz").correct).sum())
    assert f"{wrong} of 360 images of val" in text and text.count("data:image/jpeg") == min(wrong, 24)
    assert (run / "report.html").stat().st_size < 300_000
    assert str(tmp_path) not in text


def test_a_folder_without_a_training_is_one_line(tmp_path):
    done = run_report(tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: report: ")


def test_reports_need_no_mindspore_and_their_packages_only_when_they_are_made():
    code = "import sys; import focal.report; sys.exit(bool({'mindspore', 'matplotlib', 'jinja2'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY / "src", capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
