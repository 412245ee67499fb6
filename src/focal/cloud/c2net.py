"""OpenI's newer tasks: data is mounted or copied by the package c2net, and results go to the folder the platform takes.

c2net prints its errors and returns as if nothing had happened, and copies in every process that calls it. Therefore one
rank per machine calls it, its output goes to the log, and what it should have brought is checked afterwards.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from pathlib import Path
from types import ModuleType
from typing import Callable, Optional

from focal.cloud.datasets import choose_dataset, looks_like_dataset, unpack_archives
from focal.cloud.local import Storage
from focal.cloud.moxing import ResultSender
from focal.cloud.upload import with_retries
from focal.config.schema import Config
from focal.distributed.device import Device
from focal.errors import UserError, one_line

logger = logging.getLogger("focal")

CACHE_MARK = ".dataset_cache_file"  # c2net writes it when it takes the data for complete
_CROSS = "\u274c"  # starts every error that c2net prints


def import_c2net() -> ModuleType:
    """The module `c2net.context`.

    Raises:
        UserError: it is not installed, or has no `prepare` and `upload_output`.
    """
    try:
        import c2net.context as context
    except (Exception, SystemExit) as error:
        raise UserError(
            f"this is an OpenI task (DATA_DOWNLOAD_METHOD is set), but c2net cannot be imported ({error}); "
            "pip install c2net==0.2.0, or unset DATA_DOWNLOAD_METHOD to run as a local job"
        ) from None
    if not (hasattr(context, "prepare") and hasattr(context, "upload_output")):
        raise UserError("the installed c2net has no prepare and upload_output; pip install c2net==0.2.0")
    return context


def call_c2net(function: Callable[[], object]) -> None:
    """Call a function of c2net; its output goes to the log, and an error that it only prints is raised.

    Raises:
        UserError: with the error that c2net printed or raised.
    """
    printed = io.StringIO()
    failure: Optional[str] = None
    try:
        with contextlib.redirect_stdout(printed):
            function()
    except SystemExit as error:
        failure = f"it ended with sys.exit({error})"
    except Exception as error:
        failure = one_line(error)
    for line in filter(None, (line.strip() for line in printed.getvalue().splitlines())):
        if _CROSS in line or "failed for" in line:
            failure = failure or line
        elif line.startswith(("Start", "Completed", "\u2705", "Detected", "No ")):
            logger.info("c2net: %s", line)
    if failure:
        raise UserError(f"c2net: {' '.join(failure.replace(_CROSS, '').split())}")


class C2netStorage(Storage):
    """Uses what c2net mounted or copied, and gives it the results."""

    def __init__(self, config: Config, device: Device, output_folder: str) -> None:
        super().__init__(config, device, output_folder)
        self._context = import_c2net()
        self._sender: Optional[ResultSender] = None
        self._mounted = os.environ.get("DATA_DOWNLOAD_METHOD") == "MOUNT"
        if config.run.train_url != output_folder:
            logger.info("train_url: %s is not used; c2net takes results from %s", config.run.train_url, output_folder)

    def data_folder(self) -> str:
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
            try:
                call_c2net(self._context.prepare)  # does nothing where it finds its mark
                _check_prepared(folder)
            except UserError:
                (folder / CACHE_MARK).unlink(missing_ok=True)  # c2net may have written it although it failed
                raise

        # Another attempt does not improve a mount.
        with_retries("c2net.prepare", prepare, attempts=1 if self._mounted else 3)
        if not looks_like_dataset(choose_dataset(folder, self.config.data.data_url)):
            unpack_archives(folder, unpacked)

    def pretrained(self) -> Optional[str]:
        return _find_model(self.config.run.pretrained)

    def teacher(self) -> Optional[str]:
        return _find_model(self.config.run.teacher)

    def resume(self) -> Optional[str]:
        return self.config.run.resume if self.config.run.resume == "auto" else _find_model(self.config.run.resume)

    def sends_results(self) -> bool:
        return self.device.local_rank == 0

    def _send(self) -> None:
        if self._mounted:
            call_c2net(self._context.upload_output)
            return
        # c2net itself would print that sending has failed and return, and would send everything again each time.
        if self._sender is None:
            url = os.environ.get("OUTPUT_URL", "")
            if not url:
                raise UserError("OUTPUT_URL is not set, although DATA_DOWNLOAD_METHOD is MOXING; start a new task")
            self._sender = ResultSender(Path(self.output_folder), url)
        self._sender.send()


def _check_prepared(folder: Path) -> None:
    entries = [entry for entry in folder.iterdir() if entry.name != CACHE_MARK]
    if not entries:
        raise UserError(f"c2net: {folder} is empty: choose a dataset when creating the task")
    for entry in entries:
        if entry.is_dir() and not any(entry.iterdir()):
            raise UserError(f"c2net: {entry} is empty after c2net.prepare; see its output in the log")


def _find_model(path: Optional[str]) -> Optional[str]:
    """`path`, or if it does not exist, the file of that name among the models that were chosen for the task."""
    models = os.environ.get("LOCAL_PRETRAIN_MODEL_PATH", "")
    if path is None or os.path.exists(path) or not models:
        return path
    found = sorted(Path(models).rglob(os.path.basename(path)))
    return str(found[0]) if found else path
