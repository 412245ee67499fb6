"""Checks the files that a job needs or writes before anything costs time, and protects those of an earlier training."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from focal.config.schema import DataConfig, RunConfig
from focal.errors import UserError
from focal.files import writing

logger = logging.getLogger("focal")

RESULTS = (
    "checkpoints", "best", "metrics.jsonl", "tensorboard", "config.yaml", "machine.json", "predictions.npz",
    "report.html",
)  # fmt: skip


def check_input_files(run: RunConfig, data: DataConfig) -> None:
    """Check that the files named in the configuration exist. Needs no MindSpore and therefore answers at once.

    Raises:
        UserError: `pretrained`, `resume` or `data_url` does not exist.
    """
    if "://" not in data.data_url and not Path(data.data_url).exists():
        raise UserError(f"data_url: {data.data_url} does not exist; --data_url names the folder with train/ and val/")
    check_checkpoint_files(run)


def check_checkpoint_files(run: RunConfig) -> None:
    """Check that the files `pretrained` and `resume` exist; see `check_input_files`."""
    _check_checkpoint_file("pretrained", run.pretrained)
    if run.resume != "auto":
        _check_checkpoint_file("resume", run.resume, "; --resume auto takes the newest one in train_url")


def check_teacher_file(run: RunConfig) -> None:
    """Check that the file `teacher` exists, which only training needs; see `check_input_files`."""
    _check_checkpoint_file("teacher", run.teacher)


def _check_checkpoint_file(key: str, path: Optional[str], hint: str = "") -> None:
    if path is None:
        return
    if os.path.isdir(path):
        raise UserError(f"{key}: {path} is a folder; name a checkpoint in it, e.g. checkpoints/last.ckpt")
    try:
        open(path, "rb").close()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{key}: {path} does not exist{hint}") from None
    except OSError as error:
        raise UserError(f"{key}: {path} cannot be read ({error.strerror or error})") from None


def check_output_file(key: str, path: str) -> None:
    """Check that the file `path`, given by the setting `key`, can be written; its folder is created.

    Raises:
        UserError: it cannot be written.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        was_there = Path(path).exists()
        Path(path).open("a").close()
        if not was_there:
            Path(path).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{key}: {path} cannot be written ({error.strerror or error})") from None


def folder_for_earlier_results(folder: str) -> Optional[Path]:
    """Where the results of an earlier training in `folder` would be set aside; None if there are none.

    An earlier start that failed before its first record and checkpoint left no results; its files are overwritten.
    """
    metrics = Path(folder) / "metrics.jsonl"
    has_records = metrics.is_file() and metrics.stat().st_size > 0
    if not has_records and not any((Path(folder) / name).is_dir() for name in ("checkpoints", "best")):
        return None
    return _free_folder(folder)


def _free_folder(folder: str) -> Path:
    number = 1
    while (Path(folder) / f"earlier-{number}").exists():
        number += 1
    return Path(folder) / f"earlier-{number}"


def set_aside_earlier_results(folder: str) -> None:
    """Move the results of an earlier training out of the way of a new one in the same folder; nothing is deleted."""
    aside = folder_for_earlier_results(folder)
    if aside is None:
        return
    with writing("train_url", aside):
        aside.mkdir()
        for name in RESULTS:
            if (Path(folder) / name).exists():
                (Path(folder) / name).rename(aside / name)
    logger.warning("%s held an earlier training, now in %s; --resume auto continues one", folder, aside)


def set_newer_checkpoints_aside(folder: str, newer: Sequence[Path]) -> None:
    """Move checkpoints that a training does not continue from out of its way, with a copy of the records so far.

    `--resume auto` would otherwise go back to them if the training is killed before it saves its first checkpoint.
    """
    if not newer:
        return
    aside = _free_folder(folder)
    with writing("train_url", aside):
        (aside / "checkpoints").mkdir(parents=True)
        records = Path(folder) / "metrics.jsonl"
        if records.is_file():
            shutil.copyfile(records, aside / records.name)
        for path in newer:
            path.rename(aside / "checkpoints" / path.name)
    names = ", ".join(path.name for path in newer)
    logger.warning("not continued from here, and therefore moved to %s: %s", aside / "checkpoints", names)
