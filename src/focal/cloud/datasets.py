"""Finds the dataset in what a platform delivered: unpacks archives, and chooses among several datasets."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from focal.cloud.archive import unpack_archive
from focal.errors import UserError
from focal.files import is_temporary, read_json, temporary_path, write_json

logger = logging.getLogger("focal")

ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar", ".zip")


def looks_like_dataset(folder: Path) -> bool:
    """Whether `folder` holds images by split (train/ and val/, or imagenet/train) or MindRecord files."""
    if any((folder / name).is_dir() for name in ("train", "val", "imagenet/train", "imagenet/val")):
        return True
    return folder.is_dir() and any(".mindrecord" in entry.name for entry in folder.iterdir())


def choose_dataset(folder: Path, wanted: str) -> Path:
    """The dataset in `folder`: the folder itself, or one at most two levels below it.

    Args:
        folder: where the platform's datasets lie.
        wanted: the job's data_url; its last part chooses among several datasets by name.

    Raises:
        UserError: there are several datasets, and not exactly one has that name.
    """
    if looks_like_dataset(folder):
        return folder
    below: list[Path] = []
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not is_temporary(entry):
            inside = [entry] if looks_like_dataset(entry) else filter(looks_like_dataset, sorted(entry.iterdir()))
            below += inside  # one level further where an archive holds a folder around its contents
    name = os.path.basename(wanted.rstrip("/"))
    named = [entry for entry in below if name in entry.relative_to(folder).parts]
    if len(below) > 1 and len(named) != 1:
        names = ", ".join(str(entry.relative_to(folder)) for entry in below)
        raise UserError(f"data_url: {folder} holds several datasets ({names}); name one of them: --data_url NAME")
    return (named or below or [folder])[0]


def archive_stem(name: str) -> str:
    """`imagenet.tar.gz` -> `imagenet`; empty if `name` is not the name of an archive."""
    for suffix in ARCHIVE_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return ""


def unpack_archives(source: Path, target: Path, remove: bool = False) -> None:
    """Unpack the archives that lie in `source` into `target`, each into a folder named after it.

    An archive that has been unpacked before is left alone: a record beside its folder holds its size and time of
    change. A changed archive replaces what its earlier version left. A folder without a record belongs to the user; it
    stays as it is, and so does the archive of that name.

    Args:
        source: folder of archives.
        target: folder for their contents.
        remove: remove each archive once it is unpacked, where it is only a copy.

    Raises:
        UserError: an archive cannot be read, is unsafe, or does not fit on the disk; or two of them, such as data.tar
            and data.zip, would be unpacked to the same folder.
    """
    by_stem: dict[str, Path] = {}
    for archive in sorted(entry for entry in source.iterdir() if entry.is_file() and archive_stem(entry.name)):
        other = by_stem.setdefault(archive_stem(archive.name), archive)
        if other != archive:
            raise UserError(f"{other} and {archive} would be unpacked to the same folder; rename or remove one of them")
    for stem, archive in by_stem.items():
        folder, record = target / stem, target / f".{stem}.unpacked"
        status = archive.stat()
        identity = {"archive": archive.name, "bytes": status.st_size, "modified": status.st_mtime_ns}
        if folder.exists() and not record.exists():
            logger.info("%s exists; %s is not unpacked", folder, archive)
            continue
        if not folder.exists() or read_json(record) != identity:
            logger.info("unpacking %s to %s", archive, folder)
            _unpack(archive, folder, record, identity)
        if remove:
            archive.unlink()


def _unpack(archive: Path, folder: Path, record: Path, identity: dict[str, object]) -> None:
    """Unpack under a temporary name and rename, after removing what an earlier version of the archive left."""
    temporary = temporary_path(folder)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        if folder.exists():
            folder.rename(temporary)  # renamed first, so that a half-removed folder never has the real name
            shutil.rmtree(temporary)
        unpack_archive(archive, temporary)
        write_json(record, identity)  # while there is no folder, so that a crash cannot leave them inconsistent
        temporary.rename(folder)
    except OSError as error:
        raise UserError(f"cannot unpack {archive} to {folder} ({error.strerror or error}); see --cache_dir") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
