"""ModelArts and OpenI's older tasks: data and results lie in object storage, which the package moxing reaches.

moxing is part of those platforms' images and exists nowhere else; the public package index has an unrelated project of
the same name. It is used through `file.copy` and `file.copy_parallel`, and what arrived is checked with `file.exists`,
`file.list_directory` and `file.get_size`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, Optional

from focal.cloud.datasets import archive_stem, choose_dataset, looks_like_dataset, unpack_archives
from focal.cloud.local import Storage, is_remote
from focal.cloud.upload import with_retries
from focal.config.schema import Config
from focal.distributed.device import Device
from focal.errors import UserError, one_line
from focal.files import LOCK_FILE, is_temporary, read_json, temporary_path, write_json

logger = logging.getLogger("focal")

RECORD = ".focal_data.json"  # in the data folder: which sources were copied there, and whether all of them have arrived
PREMOUNTED = ("sfs/data/imagenet", "dataset", "data")  # in cache_dir: where platforms mount data


def import_moxing() -> ModuleType:
    """The platform's moxing.

    Raises:
        UserError: it is not installed, or another package of that name is.
    """
    hint = "run in an image of ModelArts or OpenI, which brings it (pip cannot install it), or leave out --run_openi"
    try:
        import moxing
    except (Exception, SystemExit) as error:  # the unrelated package may fail in any way while it is imported
        raise UserError(f"moxing cannot be imported ({one_line(error)}); {hint}") from None
    if not callable(getattr(getattr(moxing, "file", None), "copy_parallel", None)):
        raise UserError(
            "the installed package moxing has no file.copy_parallel: the public package of that name is something "
            f"else; pip uninstall moxing, and {hint}"
        )
    return moxing


class Source(NamedTuple):
    """A dataset in object storage."""

    url: str
    name: str  # of its folder or archive in the data folder; empty for the data folder itself


def parse_sources(multi_data_url: str, data_url: str) -> list[Source]:
    """Datasets to copy: those of OpenI's --multi_data_url (JSON), or data_url if that is a URL.

    Raises:
        UserError: --multi_data_url is not a JSON list of objects with dataset_url and dataset_name.
    """
    if multi_data_url.strip() not in ("", "[]"):
        try:
            entries = json.loads(multi_data_url)
            sources = [Source(entry["dataset_url"], os.path.basename(entry["dataset_name"])) for entry in entries]
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                "multi_data_url: not a JSON list of {dataset_url, dataset_name} "
                f"({type(error).__name__}: {error}): {multi_data_url[:120]}"
            ) from None
        if len(sources) == 1 and not archive_stem(sources[0].name):
            return [Source(sources[0].url, "")]
        return sources
    if is_remote(data_url):
        name = os.path.basename(data_url.rstrip("/"))
        return [Source(data_url, name if archive_stem(name) else "")]
    return []


class MoxingStorage(Storage):
    """Copies data from object storage and results to it."""

    def __init__(self, config: Config, device: Device, output_folder: str, flags: Mapping[str, str]) -> None:
        super().__init__(config, device, output_folder)
        self.cache = Path(config.run.cache_dir)
        self.flags = flags
        self.sources = parse_sources(flags.get("multi_data_url", ""), config.data.data_url)
        self._sender = ResultSender(Path(output_folder), config.run.train_url)
        if self.sources or self.sends_results():
            import_moxing()  # to report a missing package before anything else is done

    def data_folder(self) -> str:
        if not self.sources:
            return self._premounted()
        target = self.cache / "data"
        self._once_per_machine("data", lambda: _copy_data(self.sources, target))
        return str(choose_dataset(target, self.config.data.data_url))

    def _premounted(self) -> str:
        """Data that is on this machine already, used in place."""
        given = self.config.data.data_url
        for folder in (Path(given), *(self.cache / name for name in PREMOUNTED)):
            if looks_like_dataset(folder):
                logger.info("data: used in place in %s", folder)
                return str(folder)
        return given  # the check of the data reports what is missing

    def pretrained(self) -> Optional[str]:
        return self._copy_checkpoint("pretrained", self.config.run.pretrained or _checkpoint_of(self.flags))

    def teacher(self) -> Optional[str]:
        return self._copy_checkpoint("teacher", self.config.run.teacher)

    def resume(self) -> Optional[str]:
        if self.config.run.resume == "auto" and is_remote(self.config.run.train_url):
            self._once_per_machine("checkpoints", self._copy_earlier_results)
        return self._copy_checkpoint("resume", self.config.run.resume)

    def _copy_checkpoint(self, key: str, url: Optional[str]) -> Optional[str]:
        """Local path of the checkpoint that `key` names; a folder for each key, as all may be called best.ckpt."""
        if url is None or not is_remote(url):
            return url
        place = self.cache / "checkpoints" / key / os.path.basename(url.rstrip("/"))
        self._once_per_machine("checkpoint", lambda: with_retries(f"copying {url}", partial(copy_file, url, place)))
        return str(place)

    def _copy_earlier_results(self) -> None:
        """For --resume auto: copy what an earlier job sent to the same train_url, unless this folder has checkpoints.

        The best checkpoints, their predictions and the metrics come, too: this job would otherwise replace them there.
        """
        if not self.device.is_main:  # other servers would only send these files back, over what rank 0 has sent since
            return
        url, output = self.config.run.train_url.rstrip("/"), Path(self.output_folder)
        checkpoints = output / "checkpoints"
        if checkpoints.is_dir() and any(checkpoints.iterdir()):
            return
        if not _exists(f"{url}/checkpoints"):
            logger.info("resume: nothing at %s/checkpoints", url)
            return
        for name, copy in (("metrics.jsonl", copy_file), ("best", copy_folder), ("predictions.npz", copy_file)):
            if _exists(f"{url}/{name}"):
                with_retries(f"copying {url}/{name}", partial(copy, f"{url}/{name}", output / name))
        temporary = temporary_path(checkpoints)  # a part of the checkpoints must not pass for those of this job
        shutil.rmtree(temporary, ignore_errors=True)
        with_retries(f"copying {url}/checkpoints", partial(copy_folder, f"{url}/checkpoints", temporary))
        temporary.replace(checkpoints)

    def sends_results(self) -> bool:
        return self.device.local_rank == 0 and is_remote(self.config.run.train_url)

    def _send(self) -> None:
        self._sender.send()


def _checkpoint_of(flags: Mapping[str, str]) -> Optional[str]:
    """URL of the weights that the platform's flags name: as it is, or in a JSON list of models."""
    for flag in ("ckpt_url", "pretrain_url"):
        value = flags.get(flag, "")
        if value.startswith("["):
            try:
                value = next((entry["model_url"] for entry in json.loads(value)), "")
            except (ValueError, TypeError, KeyError):
                raise UserError(f"{flag}: not a JSON list of objects with model_url: {value[:120]}") from None
        if value:
            return value
    return None


def _copy_data(sources: list[Source], target: Path) -> None:
    """Copy the sources to `target` and unpack the archives among them, unless an earlier job has done so.

    What an earlier job copied from other sources is removed first: its classes would mix with these.

    Raises:
        UserError: `target` holds files that no job copied, or copying failed.
    """
    target.mkdir(parents=True, exist_ok=True)
    wanted = [list(source) for source in sources]
    record = read_json(target / RECORD)
    if record is None and any(target.iterdir()):
        raise UserError(
            f"cache_dir: {target} holds files that were not copied by this program; use them with --data_url {target}, "
            "remove them, or give another --cache_dir"
        )
    if record == {"sources": wanted, "complete": True}:
        logger.info("data: %s is complete already", target)
        return
    if record is not None and record["sources"] != wanted:
        logger.info("data: removing what an earlier job copied to %s", target)
        shutil.rmtree(target)
    write_json(target / RECORD, {"sources": wanted, "complete": False})
    for url, name in sources:
        copy = copy_file if archive_stem(name) else copy_folder
        with_retries(f"copying {url}", partial(copy, url, target / name))
    unpack_archives(target, target, remove=True)
    for folder in [entry for entry in target.iterdir() if entry.is_dir() and not looks_like_dataset(entry)]:
        unpack_archives(folder, folder, remove=True)
    write_json(target / RECORD, {"sources": wanted, "complete": True})


def copy_file(url: str, place: Path) -> None:
    """Copy one object to the file `place`.

    Raises:
        UserError: moxing failed, or not all of it arrived.
    """
    moxing = import_moxing()
    place.parent.mkdir(parents=True, exist_ok=True)
    with _errors_of(url):
        moxing.file.copy(url, str(place))
        expected = moxing.file.get_size(url)
    arrived = place.stat().st_size if place.exists() else 0
    if arrived != expected:
        raise UserError(f"moxing: {url} has {expected} bytes, of which {arrived} arrived")


def copy_folder(url: str, place: Path) -> None:
    """Copy a folder of objects to `place`.

    moxing can return after a part of the files, or with parts of files: every name and the total size are checked.

    Raises:
        UserError: moxing failed, or not all of it arrived.
    """
    moxing = import_moxing()
    place.mkdir(parents=True, exist_ok=True)
    with _errors_of(url):
        moxing.file.copy_parallel(url, str(place), threads=16)
        names = moxing.file.list_directory(url, recursive=True)
        expected = moxing.file.get_size(url, recursive=True)
    if not names:
        raise UserError(f"moxing: {url} is empty or does not exist")
    missing = [name for name in names if not (place / name).exists()]
    if missing:
        raise UserError(f"moxing: {len(missing)} files of {url} did not arrive, the first: {missing[0]}")
    arrived = sum((place / name).stat().st_size for name in names if (place / name).is_file())
    if arrived != expected:
        raise UserError(f"moxing: {url} has {expected} bytes, of which {arrived} arrived")


def _exists(url: str) -> bool:
    with _errors_of(url):
        return bool(import_moxing().file.exists(url))


@contextlib.contextmanager
def _errors_of(url: str) -> Iterator[None]:
    try:
        yield
    except SystemExit as error:
        raise UserError(f"moxing: {url}: moxing ended with sys.exit({error})") from error
    except Exception as error:
        raise UserError(f"moxing: {url}: {one_line(error)}") from error


class ResultSender:
    """Sends a growing folder of results to object storage: each time what is new or has changed, checked by size."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self._url = url.rstrip("/")
        self._sent: dict[str, tuple[int, int]] = {}  # file -> size and time of change when it was sent

    def send(self) -> None:
        """Send what has not been sent.

        Raises:
            UserError: moxing failed, or files did not arrive whole; those that did are not sent again.
        """
        changed = {name: state for name, state in _files(self._folder).items() if self._sent.get(name) != state}
        if not changed:
            return
        moxing = import_moxing()
        with _errors_of(self._url):  # with threads: a process of a running job must not be forked
            moxing.file.copy_parallel(
                str(self._folder), self._url, file_list=sorted(changed), threads=4, is_processing=False
            )
            arrived = {name: moxing.file.get_size(f"{self._url}/{name}") for name in changed}
        now = _files(self._folder)
        unchanged = [name for name, state in changed.items() if now.get(name) == state]  # the next round takes others
        wrong = [name for name in unchanged if arrived[name] != changed[name][0]]
        self._sent.update({name: changed[name] for name in unchanged if name not in wrong})
        if wrong:
            raise UserError(f"moxing: {len(wrong)} files did not arrive whole, the first: {self._url}/{wrong[0]}")


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every finished file in `folder` but its lock, by relative path."""
    files: dict[str, tuple[int, int]] = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # removed while we look
            name = path.relative_to(folder)
            if path.is_file() and not is_temporary(name) and path.name != LOCK_FILE:
                status = path.stat()
                files[name.as_posix()] = (status.st_size, status.st_mtime_ns)
    return files
