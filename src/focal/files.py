"""Files that are either whole or absent: the one atomic write of this project, and small JSON files on top of it."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Callable, Optional

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


def temporary_path(path: Path) -> Path:
    """Where a file or folder is put together before it takes the name `path`: in the same folder, with its suffix."""
    return path.with_name(_TEMPORARY + path.name)


def is_temporary(path: Path) -> bool:
    """Whether `path` is, or lies in, a file or folder that is not finished or that a crash has left unfinished."""
    return any(part.startswith(_TEMPORARY) for part in path.parts)


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


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a JSON-lines file, without a line that a crash has truncated; empty if there is no file."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
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
