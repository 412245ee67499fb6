"""The checkpoints that a training keeps: the last ones and the best ones.

Both are series of files whose names give the order: last.ckpt is the newest, then last.1.ckpt, last.2.ckpt, ...;
best.ckpt is the best, then best.1.ckpt, ... A second-best checkpoint, for example, enters a series of three like this:

    A: best.ckpt   B: best.1.ckpt   C: best.2.ckpt
    the new file N is written under a temporary name and synced to the disk
    A: best.ckpt                    B: best.2.ckpt   C: best.3.ckpt      the files behind it make room, the last first
    A: best.ckpt   N: best.1.ckpt   B: best.2.ckpt   C: best.3.ckpt      it takes its name
    A: best.ckpt   N: best.1.ckpt   B: best.2.ckpt                       the surplus is removed

Files move only to names that are free or whose file is being dropped. A crash between two renames therefore leaves a
gap in the numbers, but neither changes the order nor loses a checkpoint that was to stay.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np

from focal.checkpoint.files import Checkpoint, CheckpointError, read_checkpoint, write_checkpoint
from focal.checkpoint.resume import check_state
from focal.errors import one_line

logger = logging.getLogger("focal")


def _file_name(stem: str, number: int) -> str:
    return f"{stem}.{number}.ckpt" if number else f"{stem}.ckpt"


class _Series:
    """Numbered checkpoint files in a folder: <stem>.ckpt, <stem>.1.ckpt, <stem>.2.ckpt, ..."""

    stem: str

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = Path(folder)
        self.keep = keep

    def path(self, number: int) -> Path:
        """The file of this number, 0 being the first."""
        return self.folder / _file_name(self.stem, number)

    def existing(self) -> dict[int, Path]:
        """The files that exist, by number and in its order, however many were kept when they were written.

        Raises:
            OSError: the folder is there but cannot be listed.
        """
        found: dict[int, Path] = {}
        names = os.listdir(self.folder) if self.folder.exists() else []
        for name in names:
            middle = name[len(self.stem) : -len(".ckpt")].lstrip(".") or "0"
            if middle.isdecimal() and name == _file_name(self.stem, int(middle)):
                found[int(middle)] = self.folder / name
        return dict(sorted(found.items()))

    def _insert(self, number: int, free: int, tensors: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        """Write a checkpoint as `number`; the files between it and the name `free` move by one to make room.

        Raises:
            OSError: it could not be written; the files have not moved, unless it was a rename that failed.
        """
        if number == self.keep - 1 < free:
            free = number  # the file that is dropped is replaced in one step

        def make_room() -> None:
            step = -1 if number <= free else 1
            for target in range(free, number, step):
                os.replace(self.path(target + step), self.path(target))

        write_checkpoint(self.path(number), tensors, meta, make_room)
        for surplus in [path for other, path in self.existing().items() if other >= self.keep]:
            try:
                surplus.unlink()
            except OSError as error:  # a folder of that name, for example
                logger.warning("%s is no longer needed but cannot be removed: %s", surplus, error.strerror)


class LastCheckpoints(_Series):
    """The newest `keep` checkpoints of a training."""

    stem = "last"

    def save(self, tensors: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> bool:
        """Save as last.ckpt. If that fails, log an error, keep what was there and return False."""
        try:
            free = next(number for number in itertools.count() if not self.path(number).exists())
            self._insert(0, free, tensors, meta)
        except OSError as error:
            logger.error("checkpoint not saved, training continues, the previous one remains: %s", error)
            return False
        return True

    def newest(self) -> Optional[Checkpoint]:
        """The newest whole checkpoint, or None if there are no files; broken ones are skipped with a warning.

        Raises:
            CheckpointError: there are files, but none of them can be used, or the folder cannot be listed.
        """
        try:
            paths = list(self.existing().values())
        except OSError as error:
            raise CheckpointError(f"resume auto: {self.folder} cannot be read ({error.strerror or error})") from None
        for path in paths:
            try:
                checkpoint = read_checkpoint(path)
                check_state(checkpoint)
                return checkpoint
            except CheckpointError as error:
                logger.warning("%s; trying the one before it", error)
        if paths:
            raise CheckpointError(
                f"resume auto: none of the {len(paths)} checkpoint(s) in {self.folder} can be used, see the warnings "
                "above; to start from the beginning, leave out --resume: what is there is then moved aside"
            )
        return None

    def newer_than(self, path: Path) -> Optional[list[Path]]:
        """The files that come before `path` in the series; None if it does not belong to the series."""
        files = list(self.existing().values())
        place = [number for number, file in enumerate(files) if file.resolve() == path.resolve()]
        return files[: place[0]] if place else None


class _Kept(NamedTuple):
    """What decides about one of the best checkpoints."""

    score: float
    point: Optional[tuple[int, int]]  # epoch and step of the training that it was taken at; None: not recorded

    @classmethod
    def of(cls, score: float, meta: Mapping[str, Any]) -> _Kept:
        progress = meta.get("progress", {})
        if "epoch" not in progress:
            return cls(score, None)
        step = progress.get("step", progress.get("update", -1))  # `update` in checkpoints of earlier versions
        return cls(score, (progress["epoch"], step))


class BestCheckpoints(_Series):
    """The `keep` checkpoints of highest score; each file records its own as `meta["score"]`.

    A point of the training that is evaluated again, after a resume from an earlier one, replaces its first evaluation.

    Args:
        folder: where the files lie.
        keep: how many are kept.
        training: `Progress.training`; files of another training (a cloud job brings back what it finds) are renamed to
            aside.ckpt, aside.1.ckpt, ...; 0 if it is not known.
    """

    stem = "best"

    def __init__(self, folder: Path, keep: int, training: int = 0) -> None:
        super().__init__(folder, keep)
        self._training = training
        self._kept: Optional[list[_Kept]] = None  # of the files 0, 1, 2, ...; None: the folder is to be read
        self.lost: Optional[float] = None  # the best score, if its weights could not be written

    def offer(self, score: float, tensors: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> Optional[int]:
        """Keep these weights if they belong among the best; returns their number, or None.

        An equal score does not displace the earlier one. If writing fails, an error is logged and what was there stays.
        """
        offered = _Kept.of(score, meta)
        try:
            kept = self._kept = self._open() if self._kept is None else self._kept
            again = [n for n, known in enumerate(kept) if known.point is not None and known.point == offered.point]
            free = again[0] if again else len(kept)
            others = kept[:free] + kept[free + 1 :]
            number = sum(known.score >= score for known in others)
            if number >= self.keep:
                return None
            self._insert(number, free, tensors, {**meta, "score": score})
            if self.lost is not None and score >= self.lost:
                self.lost = None
        except OSError as error:
            logger.error("best checkpoint not saved, training continues, the previous one remains: %s", error)
            if score > max([known.score for known in self._kept or ()] + [-1.0 if self.lost is None else self.lost]):
                self.lost = score
            self._kept = None
            return None
        self._kept = [*others[:number], offered, *others[number:]][: self.keep]
        return number

    def _open(self) -> list[_Kept]:
        """Read what the folder holds, close gaps that a crash has left, and return the scores in order."""
        kept: list[_Kept] = []
        for path in self.existing().values():
            try:
                meta = read_checkpoint(path).meta or {}
                training = meta.get("progress", {}).get("training", 0)
                known = _Kept.of(float(meta.get("score", -1.0)), meta)
            except CheckpointError as error:
                logger.warning("%s; it is no longer among the best", error)
                continue
            except (TypeError, ValueError, AttributeError) as error:
                logger.warning("%s has odd metadata (%s); it is no longer among the best", path, one_line(error))
                continue
            if training not in (0, self._training):
                self._set_aside(path)
                continue
            if path != self.path(len(kept)):
                os.replace(path, self.path(len(kept)))
            kept.append(known)
        return kept[: self.keep]

    def _set_aside(self, path: Path) -> None:
        targets = (self.folder / _file_name("aside", number) for number in itertools.count())
        target = next(target for target in targets if not target.exists())
        os.replace(path, target)
        logger.warning("%s belongs to another training; it is now %s", path, target.name)
