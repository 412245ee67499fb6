"""Unpacks a dataset's archive without letting any entry leave the target folder."""

from __future__ import annotations

import gzip
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path
from typing import IO, Union

from focal.errors import UserError, one_line

_CHUNK = 1 << 20  # bytes


def unpack_archive(archive: Path, folder: Path) -> None:
    """Unpack a .tar, .tar.gz or .zip, told by its content, into the empty or missing `folder`.

    Only files and folders are unpacked, with default permissions. An unsafe entry is refused when it is reached, and
    what came before it stays: unpack under a temporary name and rename the folder afterwards.

    Raises:
        UserError: this is not an archive, it is cut short or damaged (as far as its checksums tell), the disk is full,
            or an entry is a link, a device, or has a path that leaves `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with archive.open("rb") as file:
            start = file.read(4)
        if start in (b"PK\3\4", b"PK\5\6"):
            _unpack_zip(archive, folder)
        else:
            _unpack_tar(archive, folder, compressed=start.startswith(b"\x1f\x8b"))
    except UserError:
        raise
    except Exception as error:  # each format has its own exceptions; a full disk is an OSError
        raise UserError(
            f"archive: cannot unpack {archive} to {folder} ({one_line(error)}); is the download complete?"
        ) from None


class _TarEntry(tarfile.TarInfo):
    """Refuses a damaged or missing header, which tarfile would take for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: Union[bytes, bytearray], encoding: str, errors: str) -> _TarEntry:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # a block of zeros is the real end
            raise tarfile.ReadError("it breaks off or is damaged between two files") from None


def _unpack_tar(archive: Path, folder: Path, compressed: bool) -> None:
    # Decompressed here, because tarfile's own streams never look at the checksum behind the compressed data.
    reader = gzip.open if compressed else open
    with reader(archive, "rb") as stream, tarfile.open(fileobj=stream, mode="r|", tarinfo=_TarEntry) as entries:
        for entry in entries:
            target = _inside(folder, entry.name, archive)
            if entry.isdir():
                target.mkdir(parents=True, exist_ok=True)
            elif entry.isreg():
                source = entries.extractfile(entry)
                assert source is not None
                _write(source, target)
            else:
                raise UserError(f"archive: {archive} holds a link or device, {entry.name!r}; only files are unpacked")
        assert entries.fileobj is not None
        while rest := entries.fileobj.read(_CHUNK):  # to the end of the stream, where the checksum is
            if rest.strip(b"\0"):
                raise tarfile.ReadError("there is data after its end; were several archives joined?")


def _unpack_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as entries:
        for entry in entries.infolist():
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
