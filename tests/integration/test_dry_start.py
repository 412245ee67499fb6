"""train.py --dry_run True: the plan, and that nothing is written or moved. Costs about 10 s of CPU."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.integration.jobs import REPOSITORY, job
from tests.integration.train_jobs import command, make_workplace


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def line_of(output: str, name: str) -> str:
    unwrapped = re.sub("\n {17}", " ", output)
    (line,) = [line for line in unwrapped.splitlines() if line.startswith(f"  {name} ")]
    return line


def test_a_dry_run_prints_the_plan_and_leaves_the_output_folder_as_it_was(tmp_path):
    config = make_workplace(tmp_path, num_classes=-1, accumulation_step=2)
    output = tmp_path / "out"
    (output / "checkpoints").mkdir(parents=True)
    (output / "metrics.jsonl").write_text("{}\n")
    before = files_of(tmp_path)
    # Two devices are planned for, but no workers are started.
    with job(command(config, output, dry_run=True, device_num=2), tmp_path.parent / "dry_run.log") as run:
        assert run.wait(120) == 0, run.output
        text = run.output
    assert files_of(tmp_path) == before
    assert "dry run: nothing was trained" in text and "compil" not in text
    assert "32 x 32 pixels, 4 classes: 23,650 parameters, of which 23,612 are trained; 0.6 M" in line_of(
        text, "network"
    )
    assert "2 x CPU, amp_level O0" in line_of(text, "devices")
    assert "50 images of train and 13 of val, 4 classes" in line_of(text, "data")
    steps = line_of(text, "steps")  # 50 images make 3 batches of 8 on each of two devices, hence 1 step of 2 batches
    assert "1 per epoch, of 32 images" in steps and "3 in all, 3 epochs" in steps
    assert "up to 0.0125 " in line_of(text, "learning rate"), "base_lr 0.2 x 32 images / 512"
    assert "1 epochs, 1 steps" in line_of(text, "warm-up")
    assert "MB on each device" in line_of(text, "memory") and "not estimated" in line_of(text, "memory")
    assert str(output / "earlier-1") in line_of(text, "start")
    assert "checkpoints/ (2 of 0.4 MB)" in line_of(text, "files") and "report.html" not in line_of(text, "files")


def test_mistakes_that_a_training_would_end_with_end_the_dry_run(tmp_path):
    config = make_workplace(tmp_path)
    for flags, message in (
        ({"train_url": config / "out"}, "train_url: "),  # below a file
        ({"num_classes": 7}, "num_classes: 7, but"),
        ({"distillation": "soft", "teacher": "no/such.ckpt"}, "teacher: no/such.ckpt does not exist"),
        ({"run_openi": True}, "dry_run: True cannot count the data of a cloud job"),
    ):
        line = command(config, tmp_path / "out", dry_run=True, **flags)
        done = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2 and message in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()
