"""Unpacks a dataset's archive without letting any entry leave the target folder."""

from __future__ import annotations

import contextlib
import gzip
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path
from typing import IO, Any, Union

from focal.errors import UserError, one_line

_CHUNK = 1 << 20  # bytes
MOST_ENTRIES = 20_000_000  # ImageNet-22K has 14 million images
MOST_GROWTH = 100  # times its own size that an archive may unpack to; images hardly shrink
ALWAYS_ALLOWED = 100_000_000  # bytes that even a small archive may unpack to
_LONGEST_HEADER = 1 << 20  # bytes of a long name or of extended attributes, which tarfile reads into memory


def unpack_archive(archive: Path, folder: Path) -> None:
    """Unpack a .tar, .tar.gz or .zip, told by its content, into the empty or missing `folder`.

    Only files and folders are unpacked, with default permissions. An unsafe entry is refused when it is reached, and
    what came before it stays: unpack under a temporary name and rename the folder afterwards.

    Raises:
        UserError: this is not an archive, it is cut short or damaged (as far as its checksums tell), the disk is full,
            an entry is a link, a device, or has a path that leaves `folder`; or the archive holds more than images
            could: too many entries, or too many bytes for its size.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with archive.open("rb") as file:
            start = file.read(4)
        if start in (b"PK\3\4", b"PK\5\6"):
            _unpack_zip(archive, folder, _Allowance(archive))
        else:
            _unpack_tar(archive, folder, _Allowance(archive), compressed=start.startswith(b"\x1f\x8b"))
    except UserError:
        raise
    except Exception as error:  # each format has its own exceptions; a full disk is an OSError
        raise UserError(
            f"archive: cannot unpack {archive} to {folder} ({one_line(error)}); is the download complete?"
        ) from None


class _Allowance:
    """What an archive may still unpack to: a few kilobytes must not fill the disk."""

    def __init__(self, archive: Path) -> None:
        self._archive = archive
        self._entries, self._bytes = MOST_ENTRIES, max(ALWAYS_ALLOWED, MOST_GROWTH * archive.stat().st_size)

    def take(self, entries: int = 0, size: int = 0) -> None:
        """Count entries and bytes; raises UserError once there are too many."""
        self._entries -= entries
        self._bytes -= size
        if self._entries < 0 or self._bytes < 0:
            what = "entries" if self._entries < 0 else f"bytes for its {self._archive.stat().st_size}"
            raise UserError(
                f"archive: {self._archive} holds too many {what}; refused, as it may be made to fill a disk; if you "
                "trust it, unpack it yourself and give the folder as data_url"
            )


class _Counted:
    """A binary stream; every byte that is read is taken from an allowance."""

    def __init__(self, stream: Any, allowance: _Allowance) -> None:
        self._stream, self._allowance = stream, allowance

    def read(self, size: int) -> bytes:
        data: bytes = self._stream.read(size)
        self._allowance.take(size=len(data))
        return data


class _TarEntry(tarfile.TarInfo):
    """Refuses a damaged or missing header, which tarfile would take for the end of the archive, and a huge one."""

    @classmethod
    def frombuf(cls, buf: Union[bytes, bytearray], encoding: str, errors: str) -> _TarEntry:
        try:
            entry = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # a block of zeros is the real end
            raise tarfile.ReadError("it breaks off or is damaged between two files") from None
        if entry.size < 0 or (entry.size > _LONGEST_HEADER and not entry.isreg()):
            raise tarfile.ReadError(f"a header in it claims {entry.size} bytes")
        return entry


def _unpack_tar(archive: Path, folder: Path, allowance: _Allowance, compressed: bool) -> None:
    # Decompressed here, because tarfile's own streams never look at the checksum behind the compressed data.
    reader = gzip.open if compressed else open
    with contextlib.ExitStack() as stack:
        stream: Any = _Counted(stack.enter_context(reader(archive, "rb")), allowance)
        entries = stack.enter_context(tarfile.open(fileobj=stream, mode="r|", tarinfo=_TarEntry))
        for entry in entries:
            allowance.take(entries=1)
            entries.members = []  # type: ignore[attr-defined]  # tarfile keeps them all
            target = _inside(folder, entry.name, archive)
            if entry.isdir():
                target.mkdir(parents=True, exist_ok=True)
            elif entry.isreg() and not entry.issparse():  # a sparse file takes a few bytes here, and any number there
                source = entries.extractfile(entry)
                assert source is not None
                _write(source, target)
            else:
                kind = f"a link, a device or a sparse file, {entry.name!r}"
                raise UserError(f"archive: {archive} holds {kind}; only plain files are unpacked")
        assert entries.fileobj is not None
        while rest := entries.fileobj.read(_CHUNK):  # to the end of the stream, where the checksum is
            if rest.strip(b"\0"):
                raise tarfile.ReadError("there is data after its end; were several archives joined?")


def _unpack_zip(archive: Path, folder: Path, allowance: _Allowance) -> None:
    with zipfile.ZipFile(archive) as entries:
        for entry in entries.infolist():
            allowance.take(entries=1, size=entry.file_size)  # no more than these are read
            target = _inside(folder, entry.filename, archive)
            if stat.S_ISLNK(entry.external_attr >> 16):
                raise UserError(f"archive: {archive} holds a link, {entry.filename!r}; only files are unpacked")
            if entry.is_dir():
                target.mkdir(parents=True, exist_ok=True)
            else:
                with entries.open(entry) as source:
                    _write(source, target)


def _inside(folder: Path, name: str, archive: Path) -> Path:
    """The path of an entry below `folder`; what Windows would take for a path is refused on every system."""
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0] or "\0" in name:
        raise UserError(f"archive: {archive} holds {name!r}, which leaves the folder it is unpacked to; refused")
    return folder.joinpath(*parts)


def _write(source: IO[bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "wb") as file:
        shutil.copyfileobj(source, file, _CHUNK)
