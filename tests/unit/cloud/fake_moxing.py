"""A stand-in for the platform's moxing: the documented functions of `moxing.file`, on folders of the local disk.

`obs://bucket/key` lies in `<root>/bucket/key`. Failures can be ordered: exceptions, slow copies, copies that return
after a part of the files or with truncated files, as seen of the real one.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from types import ModuleType
from typing import Callable, Optional


class FakeFile:
    """What `moxing.file` offers, with the signatures of ModelArts' documents."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[tuple] = []
        self.failures: list[Callable[[], None]] = []  # called, one per copy, before it
        self.spoil: list[Callable[[Path], None]] = []  # called, one per copy, with what was copied
        self.seconds = 0.0  # that every copy takes

    def _local(self, url: str) -> Path:
        return self.root / url.split("://", 1)[1] if "://" in url else Path(url)

    def _begin(self, *call: object) -> None:
        self.calls.append(call)
        time.sleep(self.seconds)
        if self.failures:
            self.failures.pop(0)()

    def _end(self, place: Path) -> None:
        if self.spoil:
            self.spoil.pop(0)(place)

    def copy(self, src_url: str, dst_url: str) -> None:
        """Copy one file."""
        self._begin("copy", src_url, dst_url)
        destination = self._local(dst_url)
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self._local(src_url), destination)
        self._end(destination)

    def copy_parallel(
        self,
        src_url: str,
        dst_url: str,
        file_list: Optional[list] = None,
        threads: int = 16,
        is_processing: bool = True,
        use_queue: bool = True,
    ) -> None:
        """Copy a folder, or the files of it named relative to it."""
        self._begin("copy_parallel", src_url, dst_url, file_list, is_processing)
        source, destination = self._local(src_url), self._local(dst_url)
        if not source.is_dir():
            raise OSError(f"[Errno 2] No such directory: {src_url}")
        names = file_list or [p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file()]
        for name in names:
            place = destination / name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, place)
        self._end(destination)

    def list_directory(self, url: str, recursive: bool = False) -> list[str]:
        """Relative paths of what lies in a folder, folders included."""
        folder = self._local(url)
        return [p.relative_to(folder).as_posix() for p in (folder.rglob("*") if recursive else folder.iterdir())]

    def get_size(self, url: str, recursive: bool = False) -> int:
        """Bytes of a file, or of all files of a folder."""
        path = self._local(url)
        if not path.exists():
            raise OSError(f"no such file: {url}")
        if recursive:
            return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
        return path.stat().st_size

    def exists(self, url: str) -> bool:
        """Whether there is such a file or folder."""
        return self._local(url).exists()


def make_moxing(root: Path) -> ModuleType:
    """The module, with its bucket store in `root`."""
    module = ModuleType("moxing")
    module.file = FakeFile(root)  # type: ignore[attr-defined]
    return module
