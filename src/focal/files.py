"""Files that are either whole or absent: the one atomic write of this project, and small JSON files on top of it.

Also the one way to read a file of JSON lines whose end a crash may have damaged.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, Optional, Union

from focal.errors import UserError

logger = logging.getLogger("focal")

LOCK_FILE = ".lock"  # keeps a second training out of a folder; no result
_CHUNK = 1 << 20  # bytes read at a time
_TEMPORARY = ".partial."  # starts the name of a file or folder that is being written


@contextlib.contextmanager
def atomic_write(path: Path, before_replace: Callable[[], object] = lambda: None) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends, the file written there takes the name `path`.

    The new file is on the disk before it is renamed, so after a crash `path` is the old file or the new one, and whole.
    If the block raises, the temporary file is removed and `path` is untouched. The folder is created if it is missing.

    Args:
        path: the file to write; the temporary path has the same suffix.
        before_replace: called when the new file is on the disk, just before it takes its name.

    Raises:
        OSError: the file could not be written (disk full, no permission).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        yield temporary
        _sync(temporary)
        before_replace()
        os.replace(temporary, path)
        with contextlib.suppress(OSError):  # some network file systems cannot sync a folder
            _sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def crc32_of(path: Path, end: Optional[int] = None) -> int:
    """The CRC-32 of a file.

    Args:
        path: the file.
        end: count only the bytes before this position; None: all.

    Raises:
        OSError: the file cannot be read.
    """
    checksum, place = 0, 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK if end is None else max(min(_CHUNK, end - place), 0)):
            checksum = zlib.crc32(chunk, checksum)
            place += len(chunk)
    return checksum


def temporary_path(path: Path) -> Path:
    """Where a file or folder is put together before it takes the name `path`: in the same folder, with its suffix."""
    return path.with_name(_TEMPORARY + path.name)


def is_temporary(path: Path) -> bool:
    """Whether `path` is, or lies in, a file or folder that is not finished or that a crash has left unfinished."""
    return any(part.startswith(_TEMPORARY) for part in path.parts)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed writers have left in `folder`; nobody may be writing there now."""
    for path in folder.glob(f"{_TEMPORARY}*"):
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def writing(key: str, path: Union[Path, str]) -> Iterator[None]:
    """Turn an OSError in the block into one that users understand.

    Args:
        key: the setting that names the place.
        path: the place, for errors that do not name a file themselves.

    Raises:
        UserError: something could not be written: no permission, no space, no free inode, too many open files.
    """
    try:
        yield
    except OSError as error:
        name, reason = error.filename or path, error.strerror or error
        raise UserError(f"{key}: {name} cannot be written ({reason}); make it writable or give another {key}") from None


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: object, indent: Optional[int] = None) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


def read_json(path: Path) -> Any:
    """Content of a JSON file, or None if the file does not exist or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_json_lines(path: Path, numbers: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Objects of a JSON-lines file; empty if there is no file.

    Lines that a crash has damaged are left out, and one warning says how many there were.

    Args:
        numbers: keys that must hold a number in a whole record.
    """
    if not path.exists():
        return []
    records, damaged = [], []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # no JSON, or bytes that are no text
            record = None
        if isinstance(record, dict) and all(isinstance(record.get(key), (int, float)) for key in numbers):
            records.append(record)
        else:
            damaged.append(number)
    if damaged:
        logger.warning("%s: %d damaged line(s) left out, the first is line %d", path, len(damaged), damaged[0])
    return records


def finite_or_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """Copy of `values` in which NaN and infinity become None, because JSON cannot represent them."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
