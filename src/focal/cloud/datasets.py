"""Finding the dataset in what a platform delivered: archives unpacked, the right folder chosen among several."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

from focal.errors import UserError
from focal.files import read_json, write_json

logger = logging.getLogger("focal")

_DRAFT = ".unpacking"  # ends the name of a folder that an archive is being unpacked to
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
        if entry.is_dir() and not entry.name.endswith(_DRAFT):
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

    One that was unpacked before, wholly, is not unpacked again. A record of its size and time beside the folder tells:
    another archive of that name replaces what the earlier one left. A folder without a record is not ours and stays as
    it is, as does its archive.

    Args:
        source: folder of archives.
        target: folder for what is in them.
        remove: whether to remove an archive once it is unpacked: where it is a copy, and the disk may be small.

    Returns:
        Whether there were any.

    Raises:
        UserError: an archive that cannot be read, is unsafe, or does not fit on the disk; two of one name, such as
            data.tar and data.zip.
    """
    archives = sorted(entry for entry in source.iterdir() if entry.is_file() and archive_stem(entry.name))
    by_stem: dict[str, Path] = {}
    for archive in archives:
        other = by_stem.setdefault(archive_stem(archive.name), archive)
        if other != archive:
            raise UserError(f"{other} and {archive} would be unpacked to the same folder; rename or remove one of them")
    for stem, archive in by_stem.items():
        folder, record = target / stem, target / f".{stem}.unpacked"
        status = archive.stat()
        identity = {"archive": archive.name, "bytes": status.st_size, "modified": status.st_mtime_ns}
        if folder.exists() and not record.exists():
            logger.info("%s: there already, not unpacked from %s", folder, archive)
            continue
        if folder.exists() and read_json(record) == identity:
            logger.info("%s: unpacked before", folder)
        else:
            logger.info("unpacking %s to %s", archive, folder)
            _unpack(archive, folder, record, identity)
        if remove:
            archive.unlink()
    return bool(archives)


def _unpack(archive: Path, folder: Path, record: Path, identity: dict[str, Any]) -> None:
    """Unpack beside `folder`, write `record`, and put the result in the place of what `folder` was."""
    from focal.cloud.archive import unpack_archive

    draft, former = folder.with_name(folder.name + _DRAFT), folder.with_name(folder.name + ".former" + _DRAFT)
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        unpack_archive(archive, draft)
        if folder.exists():
            shutil.rmtree(former, ignore_errors=True)
            folder.rename(former)
        # Only while there is no folder: whenever this ends, what the record says is there, or nothing is.
        write_json(record, identity)
        draft.rename(folder)
        shutil.rmtree(former, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot unpack {archive} to {folder} ({error.strerror or error}); see --cache_dir") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
