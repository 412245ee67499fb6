"""What a training has left in its folder, as far as a report shows it."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import yaml

from focal.config.loading import all_keys
from focal.errors import UserError
from focal.files import read_json, read_json_lines
from focal.predictions import Predictions

MOST_RUNS = 7  # as many as there are colours that everybody can tell apart


@dataclass(frozen=True)
class Run:
    """One training, finished or not.

    Attributes:
        name: its folder's name, with as much of the path as tells the runs apart.
        folder: its `train_url`.
        settings: key -> value, from config.yaml; empty if that is missing.
        machine: from machine.json; empty if that is missing.
        train: records of metrics.jsonl about training steps, in order.
        evaluations: records of metrics.jsonl about evaluations, in order.
        predictions: of its best weights, if it has left them.
        missing: what the folder lacks, in whole sentences.
    """

    name: str
    folder: Path
    settings: dict[str, Any]
    machine: dict[str, Any]
    train: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    predictions: Optional[Predictions]
    missing: list[str]

    def curve(self, name: str) -> tuple[list[float], list[float]]:
        """Epochs, and the values of a training figure at them; records without it are left out."""
        return _curve(self.train, name)

    def evaluation_curve(self, name: str) -> tuple[list[float], list[float]]:
        """Epochs, and the values of a figure of the evaluations at them."""
        return _curve(self.evaluations, name)

    def best(self) -> Optional[tuple[dict[str, Any], str]]:
        """The evaluation of highest top-1, and the prefix of the weights that reached it ("" or "ema_"); or None."""
        scored = [
            (record[f"{prefix}top1"], -number, prefix)
            for number, record in enumerate(self.evaluations)
            for prefix in ("", "ema_")
            if isinstance(record.get(f"{prefix}top1"), (int, float))
        ]
        if not scored:
            return None
        _, number, prefix = max(scored)
        return self.evaluations[-number], prefix

    def images_per_step(self) -> Optional[int]:
        """Images that one step takes on all devices together; None if the folder does not say."""
        batch, devices = self.settings.get("batch_size"), self.machine.get("devices", self.settings.get("device_num"))
        if batch is None or devices is None:
            return None
        return int(batch) * int(devices) * int(self.settings.get("accumulation_step", 1))

    def speed(self) -> Optional[float]:
        """Median of the recorded images per second."""
        speeds = self.curve("images_per_second")[1]
        return statistics.median(speeds) if speeds else None

    def training_seconds(self) -> Optional[float]:
        """Time spent in steps, without compilation and evaluation: images over images per second, record by record."""
        images = self.images_per_step()
        parts = [(record.get("updates"), record.get("images_per_second")) for record in self.train]
        if images is None or not any(speed for _, speed in parts):
            return None
        return sum(updates * images / speed for updates, speed in parts if updates and speed)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read the folders of finished or running trainings.

    Raises:
        UserError: a folder is missing or holds no training, or there are too many.
    """
    if len(folders) > MOST_RUNS:
        raise UserError(f"report: {len(folders)} runs, but at most {MOST_RUNS} can be told apart in one page")
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"report: {folder} is not a folder; name the train_url of a training")
        if not (folder / "metrics.jsonl").is_file():
            raise UserError(f"report: {folder} holds no metrics.jsonl; name the train_url of a training")
    return [_read_run(folder, name) for folder, name in zip(folders, run_names(folders))]


def run_names(folders: Sequence[Path]) -> list[str]:
    """Names that tell the folders apart: each path below the folder that all of them share."""
    paths = [folder.resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        raise UserError("report: a folder is named twice")
    if len(paths) == 1:
        return [paths[0].name]
    shared = os.path.commonpath([path.parent for path in paths])
    return [os.path.relpath(path, shared) for path in paths]


def _read_run(folder: Path, name: str) -> Run:
    records = read_json_lines(folder / "metrics.jsonl", numbers=("epoch",))
    missing = []
    settings = _read_settings(folder / "config.yaml")
    if not settings:
        missing.append("There is no config.yaml, so no settings are shown.")
    machine = read_json(folder / "machine.json")
    if not isinstance(machine, dict):
        machine = {}
        missing.append("There is no machine.json: the training was made by an earlier version, or has not started.")
    evaluations = [record for record in records if record.get("kind") == "val"]
    if not evaluations:
        missing.append("There has been no evaluation yet.")
    predictions = None
    try:
        if (folder / "predictions.npz").exists():
            predictions = Predictions.load(folder / "predictions.npz")
        else:
            missing.append(
                "There is no predictions.npz, so classes, confusions and mistakes are not shown. "
                f"eval.py writes it: --pretrained best.ckpt --predictions {name}/predictions.npz"
            )
    except UserError as error:
        missing.append(str(error))
    train = [record for record in records if record.get("kind") == "train"]
    return Run(name, folder, settings, machine, train, evaluations, predictions, missing)


def _read_settings(path: Path) -> dict[str, Any]:
    """The keys of a config.yaml, as written: one of an earlier version may hold keys that are no longer known."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}


def _curve(records: Sequence[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    points = [(record["epoch"], record[name]) for record in records if isinstance(record.get(name), (int, float))]
    return [float(epoch) for epoch, _ in points], [float(value) for _, value in points]


def default_settings() -> dict[str, Any]:
    """Every key with its default, in the order of the schema."""
    return {name: key.field.default for name, key in all_keys().items()}


def shown_value(value: Any) -> str:
    """A setting as text. Of an absolute path only the end is shown: a page may be passed on."""
    if value is None:
        return "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(shown_value, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    if os.path.isabs(text):
        parts = Path(text).parts
        return "…/" + "/".join(parts[-2:] if len(parts) > 3 else parts[-1:])
    return text
