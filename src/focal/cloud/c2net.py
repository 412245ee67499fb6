"""OpenI's newer tasks: data mounted or brought by the package c2net, results in the folder the platform takes.

c2net prints its errors and returns as if nothing had happened, and every process that calls it copies. So one rank per
machine calls it, what it prints goes to the log, and what it should have brought is checked afterwards.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable, Optional

from focal.cloud.datasets import archive_stem, choose_dataset, looks_like_dataset, unpack_archives
from focal.cloud.moxing import ResultSender, import_moxing
from focal.cloud.storage import C2NET, Storage
from focal.cloud.upload import with_retries
from focal.config.schema import Config
from focal.distributed.device import Device
from focal.errors import UserError

logger = logging.getLogger("focal")

CACHE_MARK = ".dataset_cache_file"  # c2net writes it when it takes the data for complete
_CROSS = "\u274c"  # starts every error that c2net prints
_UNPACKED_BY_C2NET = (".tar.gz", ".zip")


def import_c2net() -> Any:
    """The module `c2net.context`.

    Raises:
        UserError: it is not installed, or has no `prepare` and `upload_output`.
    """
    try:
        import c2net.context as context
    except Exception as error:
        raise UserError(
            f"this is an OpenI task (DATA_DOWNLOAD_METHOD is set), but c2net cannot be imported ({error}); "
            "pip install c2net==0.2.0, or unset DATA_DOWNLOAD_METHOD to run as a local job"
        ) from None
    if not (hasattr(context, "prepare") and hasattr(context, "upload_output")):
        raise UserError("the installed c2net has no prepare and upload_output; pip install c2net==0.2.0")
    return context


def call_c2net(function: Callable[[], object]) -> object:
    """Call a function of c2net; its output goes to the log, an error that it only printed is raised.

    Raises:
        UserError: with the error that c2net printed or raised.
    """
    printed = io.StringIO()
    result: object = None
    failure: Optional[str] = None
    try:
        with contextlib.redirect_stdout(printed):
            result = function()
    except Exception as error:
        failure = str(error)
    for line in filter(None, (line.strip() for line in printed.getvalue().splitlines())):
        if _CROSS in line or "failed for" in line:
            failure = failure or line
        elif line.startswith(("Start", "Completed", "\u2705", "Detected", "No ")):
            logger.info("c2net: %s", line)
    if failure:
        raise UserError(f"c2net: {' '.join(failure.replace(_CROSS, '').split())}")
    return result


class C2netStorage(Storage):
    """Uses what c2net mounted or copied, and gives it the results."""

    name = C2NET

    def __init__(self, config: Config, device: Device, flags: Mapping[str, str]) -> None:
        super().__init__(config, device, flags)
        self._context = import_c2net()
        self._sender: Optional[ResultSender] = None
        self._mounted = os.environ.get("DATA_DOWNLOAD_METHOD") == "MOUNT"
        if config.run.train_url != self.output_folder:
            logger.info(
                "train_url: %s is not used; c2net takes results from %s", config.run.train_url, self.output_folder
            )

    def _find_data(self) -> str:
        folder = Path(os.environ["LOCAL_DATASET_PATH"])
        unpacked = Path(self.config.run.cache_dir) / "data"
        self._once_per_machine("data", lambda: self._prepare(folder, unpacked))
        found = choose_dataset(folder, self.config.data.data_url)
        if not looks_like_dataset(found) and unpacked.is_dir():
            found = choose_dataset(unpacked, self.config.data.data_url)
        logger.info("data: used in %s", found)
        return str(found)

    def _prepare(self, folder: Path, unpacked: Path) -> None:
        def prepare() -> None:
            (folder / CACHE_MARK).unlink(missing_ok=True)  # a mark of an earlier, failed attempt would hide the next
            call_c2net(self._context.prepare)
            self._check_prepared(folder)

        if self._is_prepared(folder):
            logger.info("data: prepared before in %s", folder)
        else:  # a mount does not become better by being asked again
            with_retries("c2net.prepare", prepare, attempts=1 if self._mounted else 3)
        found = choose_dataset(folder, self.config.data.data_url)
        if not looks_like_dataset(found):
            unpack_archives(folder, unpacked)

    def _is_prepared(self, folder: Path) -> bool:
        if not (folder / CACHE_MARK).exists():  # c2net makes the folder, too
            return False
        with contextlib.suppress(UserError):
            self._check_prepared(folder)
            return True
        return False

    def _check_prepared(self, folder: Path) -> None:
        names = [entry.name for entry in folder.iterdir() if entry.name != CACHE_MARK]
        if not names:
            raise UserError(f"c2net: {folder} is empty: choose a dataset when creating the task")
        for name in self._expected(names):
            place = folder / name
            if not place.exists() or (place.is_dir() and not any(place.iterdir())):
                raise UserError(f"c2net: {place} is missing or empty after c2net.prepare; see the log for what it said")

    def _expected(self, names: list[str]) -> list[str]:
        """What must lie in the dataset folder: the chosen datasets, or the folders of mounted archives."""
        unpacks = os.environ.get("DATASET_NEED_UNZIP") == "true"
        if not self._mounted:
            try:
                names = [entry["dataset_name"] for entry in json.loads(os.environ.get("DATASET_URL") or "[]")]
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(f"DATASET_URL: not a JSON list of datasets ({type(error).__name__}: {error})") from None
        if not unpacks:
            return names
        return [archive_stem(name) if name.endswith(_UNPACKED_BY_C2NET) else name for name in names]

    def _fetch(self, path: Optional[str]) -> Optional[str]:
        """A name that does not exist here is looked for among the models chosen for the task."""
        models = os.environ.get("LOCAL_PRETRAIN_MODEL_PATH", "")
        if path is None or path == "auto" or os.path.exists(path) or not models:
            return path
        found = sorted(Path(models).rglob(os.path.basename(path))) if os.path.isdir(models) else []
        return str(found[0]) if found else path

    def _sends(self) -> bool:
        return self.device.local_rank == 0

    def _send(self) -> None:
        if self._mounted:
            call_c2net(self._context.upload_output)
            return
        # Not by c2net: it prints that sending failed and returns, and sends everything again each time.
        if self._sender is None:
            url = os.environ.get("OUTPUT_URL", "")
            if not url:
                raise UserError("OUTPUT_URL is not set, although DATA_DOWNLOAD_METHOD is MOXING; start the task anew")
            self._sender = ResultSender(import_moxing(), Path(self.output_folder), url)
        self._sender.send()
