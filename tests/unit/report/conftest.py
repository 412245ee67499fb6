"""Folders as trainings leave them, without a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Optional

import numpy as np
import pytest
import yaml

from focal.predictions import Predictions

LABELS = (0, 0, 0, 0, 1, 1, 1, 2, 2)
TAKEN_FOR = (0, 0, 1, 2, 1, 0, 0, 2, 2)  # class 0: 2 of 4 right, class 1: 1 of 3, class 2: all


FILES = ("a/000", "a/001", "a/002", "a/003", "b/000", "b/001", "b/002", "c/000", "c/001")
SAMPLES = (0, 1, 2, 3, 5, 6, 7, 9, 10)  # their numbers in val of `image_folder`


def some_predictions(class_names: tuple[str, ...] = ("a", "b", "c")) -> Predictions:
    """For nine images of `image_folder`, four of them mistaken; that at position 5 is the worst, then 3, 2 and 6."""
    labels, best = np.array(LABELS, np.int32), np.array(TAKEN_FOR, np.int32)
    second = np.where(best == labels, (labels + 1) % 3, labels).astype(np.int32)
    sure = np.array([0.9, 0.8, 0.7, 0.8, 0.6, 0.99, 0.5, 0.9, 0.9], np.float32)
    return Predictions(
        samples=np.array(SAMPLES, np.int32),
        names=tuple(f"val/{file}.jpg" for file in FILES),
        labels=labels,
        label_probabilities=np.where(best == labels, sure, 0.9 * (1 - sure)).astype(np.float32),
        classes=np.stack([best, second], axis=1),
        probabilities=np.stack([sure, 0.9 * (1 - sure)], axis=1),
        class_names=class_names,
        source={"epoch": 2, "weights": "EMA", "top1": 100 * 5 / 9},
    )


def write_run(folder: Path, predictions: Optional[Predictions] = None, epochs: int = 2, **settings: Any) -> Path:
    """The files of a short training: two records of steps and one evaluation in each epoch."""
    folder.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    for step in range(1, 2 * epochs + 1):
        figures = {
            "loss": 3 / step,
            "grad_norm": 1.5,
            "lr": 0.1 / step,
            "scale": 1024.0,
            "images_per_second": 40.0,
            "data_wait": 0.1,
        }
        records.append(
            {"kind": "train", "update": 10 * step, "epoch": step / 2, "updates": 10, "nonfinite": 1, **figures}
        )
        if step % 2 == 0:
            figures = {"top1": 50.0 + step, "top5": 90.0, "loss": 1.0, "ema_top1": 51.0 + step, "ema_top5": 91.0}
            records.append(
                {"kind": "val", "update": 10 * step, "epoch": step // 2, "images": 9, "ema_loss": 0.9, **figures}
            )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    settings = {"arch": "focalv2_nano", "batch_size": 8, "accumulation_step": 2, "epochs": epochs, **settings}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings, allow_unicode=True))
    (folder / "machine.json").write_text(json.dumps({"devices": 4, "device_target": "Ascend", "cann": "8.5"}))
    if predictions is not None:
        predictions.save(folder / "predictions.npz")
    return folder


@pytest.fixture
def make_run():
    return write_run


@pytest.fixture
def make_predictions():
    return some_predictions
