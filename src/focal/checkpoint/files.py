"""Checkpoint files that survive crashes: written to a new name, synced, checksummed, renamed; read by exact names.

A file is MindSpore's own format (`mindspore.load_checkpoint` reads it), with its CRC-32 at the end. Beside the tensors
it holds one text entry, `focal.meta`: JSON with all that is no tensor (epoch, step, configuration, accuracy). Names of
tensors: a parameter of the network has its official name; `ema.<name>` is its average; the rest is optimizer state and
counters. Files without `focal.meta` are weights from elsewhere, e.g. of scripts/convert_weights.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
import os
import re
from pathlib import Path
from typing import Any, NamedTuple, Optional

import mindspore as ms
import numpy as np
from mindspore import Tensor

from focal.errors import UserError

logger = logging.getLogger("focal")

META = "focal.meta"
META_FORMAT = 1
_OURS = ("ema.", "random_counter", "optimizer.step")  # entries that only files of our trainings have
_CRC_MARK, _CRC_LENGTH = b"crc_num", 17  # how MindSpore ends a file that carries a checksum


_BEST_NAME = re.compile(r"next\.ckpt|best(\.\d+|\.moving\d+)?\.ckpt")


class CheckpointError(UserError):
    """A file that is no whole checkpoint; the message says which and why."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Contents of a file: tensors by name, and the metadata (None for weights from elsewhere)."""

    path: Path
    tensors: dict[str, np.ndarray]
    meta: Optional[dict[str, Any]]


def write_checkpoint(path: Path, tensors: dict[str, np.ndarray], meta: Optional[dict[str, Any]]) -> None:
    """Write `path`, replacing what is there only once the new file is whole and on the disk.

    With `meta` None the file holds weights alone.

    Raises:
        OSError: it could not be written (disk full, no permission); what was at `path` is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem}.partial.ckpt")
    leftovers = (partial, partial.with_suffix(".tmp"))  # .tmp: what save_checkpoint itself writes to
    entries = [{"name": name, "data": Tensor(value)} for name, value in tensors.items()]
    texts = {} if meta is None else {META: json.dumps({"format": META_FORMAT, **meta})}
    try:
        ms.save_checkpoint(entries, str(partial), append_dict=texts, crc_check=True)
        os.chmod(partial, 0o644)  # save_checkpoint leaves 0400, which nobody could overwrite or share
        _sync(partial)
        os.replace(partial, path)
        _sync(path.parent)
    except Exception as error:
        for leftover in leftovers:
            with contextlib.suppress(OSError):
                leftover.unlink()
        if isinstance(error, OSError):
            raise
        raise OSError(f"cannot write {path}: {error}") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a file whole.

    Raises:
        CheckpointError: no such file, or not a whole checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint: {path} {_why_no_file(path)}")
    if path.suffix != ".ckpt":  # load_checkpoint insists
        raise CheckpointError(f"checkpoint: {path} is no MindSpore checkpoint: its name does not end in .ckpt")
    has_checksum = _ends_with_checksum(path)
    try:
        with _quiet_mindspore():
            loaded = ms.load_checkpoint(str(path), crc_check=has_checksum)
    except Exception as error:  # protobuf, CRC, missing permission, wrong suffix: all mean the same to the user
        raise CheckpointError(f"checkpoint: {path} is no whole MindSpore checkpoint ({_first_line(error)})") from None
    text = loaded.pop(META, None)
    # Cut between two entries, a file still reads well; the checksum and the metadata at its end are gone then.
    if not has_checksum and (text is not None or any(name.startswith(_OURS) for name in loaded)):
        raise CheckpointError(f"checkpoint: {path} is cut off: its checksum is missing")
    # Files from elsewhere may hold texts and numbers as well.
    tensors = {name: value.asnumpy() for name, value in loaded.items() if hasattr(value, "asnumpy")}
    return Checkpoint(path, tensors, None if text is None else _parse_meta(str(text), path))


def _parse_meta(text: str, path: Path) -> dict[str, Any]:
    try:
        meta = json.loads(text)
        version = meta["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"checkpoint: {path} has no readable {META} ({_first_line(error)})") from None
    if version != META_FORMAT:
        raise CheckpointError(f"checkpoint: {path} has format {version}, this program reads {META_FORMAT}")
    return meta


def _why_no_file(path: Path) -> str:
    if path.is_dir():
        return f"is a folder; name a file in it, e.g. {path / 'checkpoints' / 'last.ckpt'}"
    return "does not exist"


def _ends_with_checksum(path: Path) -> bool:
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(size - _CRC_LENGTH, 0))
        return file.read(len(_CRC_MARK)) == _CRC_MARK


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__


@contextlib.contextmanager
def _quiet_mindspore() -> Any:
    """Keep MindSpore from printing its own version of an error that is reported in one line here."""
    log = logging.getLogger("MindSpore")
    loggers = [log] + [entry for entry in (getattr(ms.log, "GLOBAL_LOGGER", None),) if entry is not None]
    levels = [entry.level for entry in loggers]
    for entry in loggers:
        entry.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for entry, level in zip(loggers, levels):
            entry.setLevel(level)


def ranked_names(stem: str, count: int) -> list[str]:
    """File names of rank 0, 1, 2...: last.ckpt, last.1.ckpt, last.2.ckpt."""
    return [f"{stem}.ckpt" if rank == 0 else f"{stem}.{rank}.ckpt" for rank in range(count)]


class LastCheckpoints:
    """The newest `keep` checkpoints of a training: last.ckpt, before it last.1.ckpt, and so on.

    The new file is whole under a name of its own before any other moves, and the oldest goes last; a crash in between
    leaves at most a gap in the numbering. Names tell the order only; epoch and step are inside.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = Path(folder)
        self.keep = keep

    def save(self, tensors: dict[str, np.ndarray], meta: dict[str, Any]) -> bool:
        """Save as last.ckpt; on failure log an error, keep what was there and return False."""
        fresh = self.folder / "next.ckpt"
        try:
            write_checkpoint(fresh, tensors, meta)
            paths = [self.folder / name for name in ranked_names("last", self.keep)]
            for older, newer in zip(reversed(paths), reversed(paths[:-1])):
                if newer.exists():
                    os.replace(newer, older)
            os.replace(fresh, paths[0])
            _sync(self.folder)
            for surplus in self._existing()[self.keep :]:
                surplus.unlink()
        except OSError as error:
            logger.error("checkpoint not saved, training goes on, the previous one remains: %s", error)
            with contextlib.suppress(OSError):
                fresh.unlink()
            return False
        return True

    def newest(self) -> Optional[Checkpoint]:
        """The newest whole checkpoint; broken ones are skipped with a warning. None if there is none at all."""
        for path in [self.folder / "next.ckpt", *self._existing()]:
            if not path.exists():
                continue
            try:
                checkpoint = read_checkpoint(path)
                if checkpoint.meta is None:
                    raise CheckpointError(f"checkpoint: {path} holds weights only, no state of a training")
                return checkpoint
            except CheckpointError as error:
                logger.warning("%s; trying the one before it", error)
        return None

    def _existing(self) -> list[Path]:
        """Files of this series, newest first, whatever `keep` was when they were written."""

        def rank(path: Path) -> int:
            middle = path.name[len("last") : -len(".ckpt")]
            return 0 if not middle else int(middle[1:])

        names = [path for path in self.folder.glob("last*.ckpt") if path.name[4:-5].lstrip(".").isdigit()]
        names += list(self.folder.glob("last.ckpt"))
        return sorted(names, key=rank)


class _Kept(NamedTuple):
    """One of the best checkpoints: its score, and the place in the training it was taken at."""

    score: float
    place: tuple[int, int]  # epoch and update; (-1, -1) if the file does not say

    @classmethod
    def of(cls, score: float, meta: dict[str, Any]) -> _Kept:
        progress = meta.get("progress", {})
        return cls(score, (int(progress.get("epoch", -1)), int(progress.get("update", -1))))

    def is_same_place(self, other: _Kept) -> bool:
        return self.place == other.place != (-1, -1)


class BestCheckpoints:
    """The `keep` checkpoints of highest score: best.ckpt, best.1.ckpt, ... Scores are inside (`meta["score"]`).

    A place in the training that is offered again, after a resume from before it, replaces its earlier self.

    Args:
        folder: for the files.
        keep: how many.
        training: `Progress.training`; files of another one (a cloud job brings what it finds) are renamed to
            aside.ckpt, aside.1.ckpt, ... 0: not known.
    """

    def __init__(self, folder: Path, keep: int, training: int = 0) -> None:
        self.folder = Path(folder)
        self.keep = keep
        self._training = training
        self._kept: Optional[list[_Kept]] = None  # of the files on the disk, best first; None: not looked yet

    def offer(self, score: float, tensors: dict[str, np.ndarray], meta: dict[str, Any]) -> Optional[int]:
        """Keep these weights if they belong among the best; returns their rank, or None."""
        offered = _Kept.of(score, meta)
        paths = [self.folder / name for name in ranked_names("best", self.keep)]
        fresh = self.folder / "next.ckpt"
        try:
            kept = self._known()
            again = next((rank for rank, known in enumerate(kept) if known.is_same_place(offered)), None)
            others = [known for rank, known in enumerate(kept) if rank != again]
            rank = sum(known.score >= score for known in others)
            if rank >= self.keep:
                return None
            freed = again if again is not None else min(len(kept), self.keep - 1)  # where a file goes or is missing
            write_checkpoint(fresh, tensors, {**meta, "score": score})
            step = -1 if rank <= freed else 1
            for place in range(freed, rank, step):
                os.replace(paths[place + step], paths[place])
            os.replace(fresh, paths[rank])
            _sync(self.folder)
        except OSError as error:
            logger.error("best checkpoint not saved, training goes on, the previous one remains: %s", error)
            self._kept = None
            with contextlib.suppress(OSError):
                fresh.unlink()
            return None
        self._kept = [*others[:rank], offered, *others[rank:]][: self.keep]
        return rank

    def _known(self) -> list[_Kept]:
        """What the folder holds, best first; files that a crash left out of order are put in order."""
        if self._kept is None:
            found = self._read()
            self._put_in_order([path for _, path in found])
            self._kept = [known for known, _ in found]
        return self._kept

    def _read(self) -> list[tuple[_Kept, Path]]:
        found: list[tuple[_Kept, Path]] = []
        for path in self._files():
            try:
                meta = read_checkpoint(path).meta or {}
            except CheckpointError as error:
                logger.warning("%s; it is no longer among the best", error)
                continue
            known = _Kept.of(float(meta.get("score", -1.0)), meta)
            if meta.get("progress", {}).get("training", 0) not in (0, self._training):
                self._put_aside(path)
            elif any(known.is_same_place(other) for other, _ in found):
                path.unlink()  # next.ckpt is its later self
            else:
                found.append((known, path))
        # next.ckpt comes first when read, as the newest, and last among equals: it does not displace them.
        found.sort(key=lambda entry: (-entry[0].score, entry[1].name == "next.ckpt"))
        return found[: self.keep]

    def _files(self) -> list[Path]:
        """The files of this series by exact name: the new one, those on the move, those in place."""
        files = [path for path in self.folder.glob("*.ckpt") if _BEST_NAME.fullmatch(path.name)]
        return sorted(files, key=lambda path: (path.name != "next.ckpt", len(path.name), path.name))

    def _put_aside(self, path: Path) -> None:
        number = 0
        while (aside := self.folder / ranked_names("aside", number + 1)[number]).exists():
            number += 1
        os.replace(path, aside)
        logger.warning("%s is of another training; it is now %s", path, aside.name)

    def _put_in_order(self, paths: list[Path]) -> None:
        wanted = [self.folder / name for name in ranked_names("best", len(paths))]
        if paths == wanted:
            return
        taken = [path.name for path in self._files()]
        free = (name for number in itertools.count() if (name := f"best.moving{number}.ckpt") not in taken)
        waiting = [self.folder / next(free) for _ in paths]
        for sources, targets in ((paths, waiting), (waiting, wanted)):
            for source, target in zip(sources, targets):
                os.replace(source, target)
