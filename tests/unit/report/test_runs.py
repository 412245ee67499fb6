"""What is read from the folders of trainings, and what is said about folders that are not."""

from __future__ import annotations

import pytest

from focal.errors import UserError
from focal.report.runs import MOST_RUNS, read_runs, run_names, shown_value


def test_a_run_has_its_curves_and_figures(tmp_path, make_run, make_predictions):
    (run,) = read_runs([make_run(tmp_path / "first", make_predictions())])
    assert run.name == "first" and run.missing == []
    assert run.curve("loss") == ([0.5, 1.0, 1.5, 2.0], [3.0, 1.5, 1.0, 0.75])
    assert run.evaluation_curve("ema_top1") == ([1.0, 2.0], [53.0, 55.0])
    record, prefix = run.best()
    assert (record["epoch"], prefix) == (2, "ema_")
    assert run.images_per_step() == 8 * 4 * 2 and run.speed() == 40
    assert run.training_seconds() == 4 * 10 * 64 / 40


def test_the_first_of_equal_evaluations_is_the_best(tmp_path, make_run):
    folder = make_run(tmp_path / "first")
    lines = [f'{{"kind": "val", "update": {n}, "epoch": {n}, "top1": 70.0, "ema_top1": null}}\n' for n in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    (run,) = read_runs([folder])
    assert run.best()[0]["epoch"] == 1 and run.best()[1] == ""
    assert run.evaluation_curve("ema_top1") == ([], [])
    assert run.training_seconds() is None


def test_what_is_missing_is_said(tmp_path, make_run):
    folder = make_run(tmp_path / "first")
    (folder / "config.yaml").write_text("[")
    (folder / "machine.json").unlink()
    (folder / "metrics.jsonl").write_text("")
    (run,) = read_runs([folder])
    said = " ".join(run.missing)
    assert all(name in said for name in ("config.yaml", "machine.json", "no evaluation", "eval.py", "predictions.npz"))
    assert run.settings == {} and run.best() is None


def test_a_damaged_file_of_predictions_does_not_stop_the_report(tmp_path, make_run):
    folder = make_run(tmp_path / "first")
    (folder / "predictions.npz").write_bytes(b"no archive")
    (run,) = read_runs([folder])
    assert run.predictions is None and "cannot read" in run.missing[0]


def test_names_tell_the_runs_apart(tmp_path):
    folders = [tmp_path / "a" / "output", tmp_path / "b" / "output"]
    assert run_names(folders) == ["a/output", "b/output"]
    assert run_names(folders[:1]) == ["output"]
    with pytest.raises(UserError, match="named twice"):
        run_names([folders[0], tmp_path / "b" / ".." / "a" / "output"])


def test_folders_without_a_training_are_refused_by_name(tmp_path, make_run):
    with pytest.raises(UserError, match="nowhere is not a folder"):
        read_runs([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="holds no metrics.jsonl"):
        read_runs([tmp_path])
    with pytest.raises(UserError, match=f"{MOST_RUNS + 1} runs, but at most {MOST_RUNS}"):
        read_runs([tmp_path] * (MOST_RUNS + 1))


@pytest.mark.parametrize(
    "value, text",
    [(None, "none"), ([2, 2, 6], "2, 2, 6"), (True, "True"), (5e-4, "0.0005"), ("./out", "./out"),
     ("/home/me/data/imagenet", "…/data/imagenet"), ("/data/imagenet", "…/imagenet")],
)  # fmt: skip
def test_settings_are_shown_without_the_start_of_a_path(value, text):
    assert shown_value(value) == text
