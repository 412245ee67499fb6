"""Finding the dataset in what a platform delivered: archives unpacked, the right folder chosen among several."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from src.errors import UserError

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
        UserError: several datasets and none of that name.
    """
    if looks_like_dataset(folder):
        return folder
    below = _datasets_below(folder)
    name = os.path.basename(wanted.rstrip("/"))
    named = [entry for entry in below if name in entry.relative_to(folder).parts]
    if len(below) > 1 and len(named) != 1:
        names = ", ".join(str(entry.relative_to(folder)) for entry in below)
        raise UserError(f"data_url: {folder} holds several datasets ({names}); name one of them: --data_url NAME")
    return (named or below or [folder])[0]


def _datasets_below(folder: Path) -> list[Path]:
    """Datasets in the folders of `folder`, or, for an archive with a folder of its own inside, one level further."""
    found = []
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            deeper = (
                [entry] if looks_like_dataset(entry) else sorted(e for e in entry.iterdir() if looks_like_dataset(e))
            )
            found += deeper
    return found


def archive_stem(name: str) -> str:
    """`imagenet.tar.gz` -> `imagenet`; empty if the name is not an archive's."""
    for suffix in ARCHIVE_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return ""


def unpack_archives(source: Path, target: Path, remove: bool = False) -> bool:
    """Unpack the archives that lie in `source` into `target`, each into a folder named after it.

    One that was unpacked before, wholly, is not unpacked again.

    Args:
        source: folder of archives.
        target: folder for what is in them.
        remove: whether to remove an archive once it is unpacked: where it is a copy, and the disk may be small.

    Returns:
        Whether there were any.

    Raises:
        UserError: an archive that cannot be read, is unsafe, or does not fit on the disk.
    """
    archives = sorted(entry for entry in source.iterdir() if entry.is_file() and archive_stem(entry.name))
    for archive in archives:
        folder = target / archive_stem(archive.name)
        if folder.exists():
            logger.info("%s: unpacked before", folder)
        else:
            draft = folder.with_name(folder.name + ".unpacking")
            shutil.rmtree(draft, ignore_errors=True)
            logger.info("unpacking %s to %s", archive, folder)
            draft.mkdir(parents=True)
            _unpack(archive, draft)
            draft.rename(folder)
        if remove:
            archive.unlink()
    return bool(archives)


def _unpack(archive: Path, folder: Path) -> None:
    from src.data.archive import unpack_archive

    unpack_archive(archive, folder)
