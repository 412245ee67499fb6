"""The scripts about data, run as a user runs them: check_dataset, make_mindrecord, show_batch, benchmark data."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Optional

import numpy as np
import pytest
from PIL import Image

from focal.config import load_config
from focal.data import EvalData, TrainData, check_data
from tests.unit.conftest import write_images

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ with 26 images and val/ with 13, of two classes."""
    root = tmp_path_factory.mktemp("data")
    write_images(root / "train", {"a": 13, "b": 13})
    write_images(root / "val", {"a": 7, "b": 6}, seed=1)
    return root


@pytest.fixture(scope="module")
def damaged(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with unreadable files: 3 in train, 2 in val."""
    root = Path(shutil.copytree(folder, tmp_path_factory.mktemp("data") / "damaged"))
    (root / "train/a/000.jpg").write_bytes(b"")
    (root / "train/b/003.jpg").write_text("a text file")
    for name in ("train/a/010.jpg", "val/a/002.jpg"):
        data = (root / name).read_bytes()
        (root / name).write_bytes(data[: len(data) // 2])
    (root / "val/b/005.jpg").write_bytes(b"")
    return root


def script(name: str, *arguments: str, cwd: Optional[Path] = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "scripts" / name), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def test_check_dataset_names_every_unreadable_file(damaged: Path) -> None:
    found = script("check_dataset.py", "--data_url", str(damaged), "--workers", "2")
    assert found.returncode == 1
    for name in ("train/a/000.jpg", "train/b/003.jpg", "train/a/010.jpg", "val/a/002.jpg", "val/b/005.jpg"):
        assert f"unreadable: {damaged / name} (" in found.stdout
    assert "train: 26 images, 2 classes, 3 unreadable" in found.stdout


def test_check_dataset_prints_file_names_that_are_not_valid_text(folder: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(folder, tmp_path / "strange"))
    (root / "val" / "a" / os.fsdecode(b"\xff.jpg")).write_bytes(b"not an image")
    found = script("check_dataset.py", "--data_url", str(root), "--splits", "val")
    assert "val/a/\\udcff.jpg (" in found.stdout and "val: 14 images, 2 classes, 1 unreadable" in found.stdout


def test_check_dataset_succeeds_on_readable_files_and_refuses_a_missing_folder(folder: Path) -> None:
    clean = script("check_dataset.py", "--data_url", str(folder), "--splits", "val")
    assert clean.returncode == 0 and clean.stdout == "val: 13 images, 2 classes, 0 unreadable\n"
    missing = script("check_dataset.py", "--data_url", str(folder / "nowhere"))
    assert missing.returncode == 2 and missing.stderr.startswith("error: data_url") and missing.stderr.count("\n") == 1


def test_show_batch_saves_a_picture(folder: Path, tmp_path: Path) -> None:
    keys = ["--data_url", str(folder), "--num_classes", "2", "--image_size", "64", "--device_target", "CPU"]
    keys += ["--batch_size", "10"]
    done = script("show_batch.py", *keys, "--output", "sheet.png", "--step", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    # Ten images in rows of eight, in cells of at least 96 pixels; the last six cells stay white.
    assert sheet.shape == (2 * (64 + 30) + 4, 8 * 100 + 4, 3)
    assert (sheet[98:, 204:] == 255).all() and len(np.unique(sheet[:64, :64])) > 50
    wrong = script("show_batch.py", *keys, "--step", "2", cwd=tmp_path)
    assert wrong.returncode == 2 and "an epoch has" in wrong.stderr
    for output in ("sheet", "nowhere/sheet.png"):
        wrong = script("show_batch.py", *keys, "--output", output, cwd=tmp_path)
        assert wrong.returncode == 2 and wrong.stderr.startswith(f"error: output: {output} cannot be written")


def test_benchmark_of_data_writes_json_even_with_unreadable_images(damaged: Path, tmp_path: Path) -> None:
    keys = ["--data_url", str(damaged), "--num_classes", "2", "--image_size", "32", "--batch_size", "4"]
    keys += ["--num_parallel_workers", "2", "--device_target", "CPU", "--json", "speed.json"]
    peer = ["--peer", f"{sys.executable} -c \"print('images_per_second: 2.0')\""]
    done = script("benchmark.py", "data", *keys, *peer, "--images", "32", "--stage_images", "8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "speed.json").read_text())
    assert set(result["stages_images_per_second"]) == {"decode+crop", "augment", "erase", "targets"}
    assert all(rate > 0 for rate in result["stages_images_per_second"].values())
    assert result["images_per_second"] > 0 and "whole pipeline" in done.stdout
    assert result["ratio_to_peer"] == result["images_per_second"] / 2 and "ratio " in done.stdout
    typo = script("benchmark.py", "data", *keys, "--imags", "3")
    assert typo.returncode == 2 and "imags" in typo.stderr


@pytest.mark.parametrize("processes", (False, True))
def test_mindrecord_gives_the_batches_of_its_folder_in_training_and_evaluation(
    folder: Path, damaged: Path, tmp_path: Path, processes: bool
) -> None:
    """Also where images are unreadable: they are copied as they are."""
    root = damaged if processes else folder
    made = script("make_mindrecord.py", "--data_url", str(root), "--output", str(tmp_path / "mr"), "--shards", "2")
    assert made.returncode == 0, made.stderr
    config = load_config(
        {"num_classes": 2, "image_size": 32, "batch_size": 4, "eval_batch_size": 5, "num_parallel_workers": 2,
         "worker_processes": processes, "device_target": "CPU"}
    )  # fmt: skip
    passes = []
    for place in (root, tmp_path / "mr"):
        layout = check_data(config, str(place))
        train, evaluation = TrainData(config, layout), EvalData(config, layout)
        batches = [b"".join(array.tobytes() for array in batch) for batch in (*train.epoch(3), *evaluation)]
        passes.append((batches, sum(train.unreadable.values()), len(evaluation.unreadable)))
    assert passes[0] == passes[1] and len(passes[0][0]) == 6 + 3
    assert passes[0][2] == (2 if processes else 0)
    if processes:
        found = script("check_dataset.py", "--data_url", str(tmp_path / "mr"))
        assert found.returncode == 1 and "train: 26 images, 2 classes, 3 unreadable" in found.stdout
        assert "train.mindrecord0:a/010.jpg (" in found.stdout or "train.mindrecord1:a/010.jpg (" in found.stdout
