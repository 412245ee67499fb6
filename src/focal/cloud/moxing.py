"""ModelArts, and OpenI's older tasks: data and results lie in object storage, reached through the package moxing.

moxing comes preinstalled in those platforms' images and nowhere else; the public package index has an unrelated project
of the same name. Used of it: `file.copy`, `file.copy_parallel`, `file.exists`, and for checking what arrived
`file.list_directory` and `file.get_size`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, Optional

from focal.cloud.datasets import archive_stem, choose_dataset, looks_like_dataset, unpack_archives
from focal.cloud.storage import MOXING, Storage, is_remote
from focal.cloud.upload import with_retries
from focal.config.schema import Config
from focal.distributed.device import Device
from focal.errors import UserError
from focal.files import read_json, write_json

logger = logging.getLogger("focal")

RECORD = ".focal_data.json"  # in the data folder: which sources we copy there, and whether all of it has arrived
_DRAFTS = ("next.ckpt", "next.partial.ckpt")  # a checkpoint that is being written
PREMOUNTED = ("sfs/data/imagenet", "dataset", "data")  # in cache_dir: where platforms mount data


class Source(NamedTuple):
    """A dataset in object storage."""

    url: str
    name: str  # of its folder, or of the archive, here; empty: the data folder itself


def import_moxing() -> ModuleType:
    """The platform's moxing.

    Raises:
        UserError: it is not there, or what is there is another package of that name.
    """
    way_out = "run in an image of ModelArts or OpenI, which brings it (pip cannot install it), or leave out --run_openi"
    try:
        import moxing
    except Exception as error:  # the unrelated package may fail in any way while it is imported
        raise UserError(f"moxing cannot be imported ({' '.join(str(error).split())}); {way_out}") from None
    if not callable(getattr(getattr(moxing, "file", None), "copy_parallel", None)):
        raise UserError(
            "the installed package moxing has no file.copy_parallel: the public package of that name is something "
            f"else; pip uninstall moxing, and {way_out}"
        )
    return moxing


def parse_sources(multi_data_url: str, data_url: str) -> list[Source]:
    """Datasets to be copied: those of OpenI's --multi_data_url (JSON), else data_url where that is a URL.

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
        if len(sources) == 1 and not archive_stem(sources[0].name):  # a single one lies in the data folder itself
            return [Source(sources[0].url, "")]
        return sources
    if is_remote(data_url):
        name = os.path.basename(data_url.rstrip("/"))
        return [Source(data_url, name if archive_stem(name) else "")]
    return []


class MoxingStorage(Storage):
    """Copies from and to object storage with moxing."""

    name = MOXING

    def __init__(self, config: Config, device: Device, flags: Mapping[str, str]) -> None:
        super().__init__(config, device, flags)
        self.cache = Path(config.run.cache_dir)
        self._moxing: Optional[ModuleType] = None
        self._sender: Optional[ResultSender] = None
        if self._sends() or parse_sources(flags.get("multi_data_url", ""), config.data.data_url):
            self._moxing = import_moxing()

    # ---- data in

    def _find_data(self) -> str:
        sources = parse_sources(self.flags.get("multi_data_url", ""), self.config.data.data_url)
        if not sources:
            return self._premounted()
        target = self.cache / "data"
        self._once_per_machine("data", lambda: self._bring_data(sources, target))
        return str(choose_dataset(target, self.config.data.data_url))

    def _premounted(self) -> str:
        """Data that the platform has put on this machine already, used in place."""
        given = self.config.data.data_url
        candidates = [Path(given), *(self.cache / name for name in PREMOUNTED)]
        for folder in candidates:
            if looks_like_dataset(folder):
                logger.info("data: used in place in %s", folder)
                return str(folder)
        return given  # the check of the data says what is missing

    def _bring_data(self, sources: list[Source], target: Path) -> None:
        wanted = [list(source) for source in sources]
        if _prepare_target(target, wanted):
            logger.info("data: %s has it already", target)
            return
        for source in sources:
            with_retries(f"copying {source.url}", lambda source=source: self._copy(source, target))
        unpack_archives(target, target, remove=True)
        for folder in [entry for entry in target.iterdir() if entry.is_dir() and not looks_like_dataset(entry)]:
            unpack_archives(folder, folder, remove=True)
        _write_record(target, wanted, complete=True)

    def _copy(self, source: Source, target: Path) -> None:
        place = target / source.name
        if archive_stem(source.name):
            copy_file(self._moxing, source.url, place)
        else:
            copy_folder(self._moxing, source.url, place)

    def pretrained(self) -> Optional[str]:
        """See `Storage.pretrained`."""
        return self._fetch(self.config.run.pretrained or self._flagged_checkpoint())

    def resume(self) -> Optional[str]:
        """See `Storage.resume`."""
        if self.config.run.resume == "auto" and is_remote(self.config.run.train_url):
            self._once_per_machine("checkpoints", self._bring_results)
        return self._fetch(self.config.run.resume)

    def _fetch(self, url: Optional[str]) -> Optional[str]:
        if url is None or not is_remote(url):
            return url
        self._moxing = self._moxing or import_moxing()
        place = self.cache / "checkpoints" / os.path.basename(url.rstrip("/"))
        self._once_per_machine(
            "checkpoint", lambda: with_retries(f"copying {url}", lambda: copy_file(self._moxing, url, place))
        )
        return str(place)

    def _flagged_checkpoint(self) -> Optional[str]:
        for flag in ("ckpt_url", "pretrain_url"):
            value = self.flags.get(flag, "")
            if value.startswith("["):  # OpenI's newer form: a JSON list of models
                try:
                    value = next((entry["model_url"] for entry in json.loads(value)), "")
                except (ValueError, TypeError, KeyError):
                    raise UserError(f"{flag}: not a JSON list of objects with model_url: {value[:120]}") from None
            if value:
                return value
        return None

    def _bring_results(self) -> None:
        """What an earlier job sent to the same train_url, for --resume auto; if there are checkpoints here, all is.

        The best checkpoints and the records come too: what this job sends there would otherwise replace them.
        """
        if not self.device.is_main:  # on other servers nobody reads them, and they would be sent back, old as they are
            return
        url, output = self.config.run.train_url.rstrip("/"), Path(self.output_folder)
        if (output / "checkpoints").is_dir() and any((output / "checkpoints").iterdir()):
            return
        self._moxing = self._moxing or import_moxing()
        if not self._is_there(f"{url}/checkpoints"):
            logger.info("resume: nothing at %s/checkpoints", url)
            return
        output.mkdir(parents=True, exist_ok=True)
        for name in ("metrics.jsonl", "best", "checkpoints"):  # the last one shows that all have arrived
            if self._is_there(f"{url}/{name}"):
                with_retries(f"copying {url}/{name}", lambda name=name: self._bring(f"{url}/{name}", output / name))

    def _is_there(self, url: str) -> bool:
        with _errors_of(url):
            return bool(self._moxing.file.exists(url))

    def _bring(self, url: str, place: Path) -> None:
        """Copy a file or a folder to where nothing of the sort lies yet, or only a part of it."""
        draft = self.cache / f"{place.name}.bringing"  # a part of a copy must not be taken for newer results
        for left_over in (draft, place):
            if left_over.is_dir():
                shutil.rmtree(left_over)
            else:
                left_over.unlink(missing_ok=True)
        if place.suffix:
            copy_file(self._moxing, url, draft)
        else:
            copy_folder(self._moxing, url, draft)
        draft.rename(place)

    # ---- results out

    def _sends(self) -> bool:
        return self.device.local_rank == 0 and is_remote(self.config.run.train_url)

    def _send(self) -> None:
        if self._sender is None:
            self._sender = ResultSender(self._moxing, Path(self.output_folder), self.config.run.train_url)
        self._sender.send()


def _prepare_target(target: Path, wanted: list[list[str]]) -> bool:
    """Make `target` ready to take the sources `wanted`; returns whether it holds all of them already.

    Other sources that an earlier job copied are removed: their classes would mix with these.

    Raises:
        UserError: files that are not ours lie there.
    """
    target.mkdir(parents=True, exist_ok=True)
    record = read_json(target / RECORD)
    if record is None and any(target.iterdir()):
        raise UserError(
            f"cache_dir: {target} holds files that were not copied by this program; use them with --data_url {target}, "
            "remove them, or give another --cache_dir"
        )
    if record is not None and record["sources"] != wanted:
        logger.info("data: removing what an earlier job copied to %s", target)
        shutil.rmtree(target)
    elif record is not None and record["complete"]:
        return True
    _write_record(target, wanted, complete=False)
    return False


def _write_record(target: Path, sources: list[list[str]], complete: bool) -> None:
    target.mkdir(parents=True, exist_ok=True)
    write_json(target / RECORD, {"sources": sources, "complete": complete})


def copy_file(moxing: ModuleType, url: str, place: Path) -> None:
    """Copy one object to the file `place`; raises `UserError` unless all of it arrived."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with _errors_of(url):
        moxing.file.copy(url, str(place))
        expected = moxing.file.get_size(url)
    arrived = place.stat().st_size if place.exists() else 0
    if arrived != expected:
        raise UserError(f"moxing: {url} has {expected} bytes, of which {arrived} arrived")


def copy_folder(moxing: ModuleType, url: str, place: Path) -> None:
    """Copy a folder of objects to `place`; raises `UserError` unless all of it arrived.

    Checked by every name and the sum of sizes: a copy can return after a part of the files, or with parts of files.
    """
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


@contextlib.contextmanager
def _errors_of(url: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise UserError(f"moxing: {url}: {' '.join(str(error).split()) or type(error).__name__}") from error


class ResultSender:
    """Sends a growing folder of results to object storage: each time what is new or has changed, checked by size."""

    def __init__(self, moxing: ModuleType, folder: Path, url: str) -> None:
        self._moxing = moxing
        self._folder = folder
        self._url = url.rstrip("/")
        self._sent: dict[str, tuple[int, int]] = {}  # file -> size and time of change when it was sent

    def send(self) -> None:
        """Send what has not been sent.

        Raises:
            UserError: moxing failed, or a file did not arrive in whole; what did is not sent again.
        """
        changed = {name: state for name, state in _files(self._folder).items() if self._sent.get(name) != state}
        if not changed:
            return
        with _errors_of(self._url):  # in threads: a process of a running job must not be forked
            self._moxing.file.copy_parallel(
                str(self._folder), self._url, file_list=sorted(changed), threads=4, is_processing=False
            )
            arrived = {name: self._moxing.file.get_size(f"{self._url}/{name}") for name in changed}
        now = _files(self._folder)
        wrong = []
        for name, state in changed.items():
            if now.get(name) != state:  # written to or removed meanwhile: the next round takes it
                continue
            if arrived[name] == state[0]:
                self._sent[name] = state
            else:
                wrong.append(name)
        if wrong:
            raise UserError(f"moxing: {len(wrong)} files did not arrive in whole, the first: {self._url}/{wrong[0]}")


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file in `folder`, by relative path; drafts are left out."""
    files: dict[str, tuple[int, int]] = {}
    for path in folder.rglob("*"):
        try:
            if path.suffix != ".tmp" and path.name not in _DRAFTS and path.is_file():
                status = path.stat()
                files[path.relative_to(folder).as_posix()] = (status.st_size, status.st_mtime_ns)
        except OSError:  # removed while we look
            continue
    return files
