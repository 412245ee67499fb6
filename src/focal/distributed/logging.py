"""Logging by rank: rank 0 prints to the terminal, and every rank writes its own file."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import Optional

from focal.files import writing

LOGGER_NAME = "focal"


def make_log_folder(folder: str) -> Path:
    """Make the folder `log` in the job's train_url, unless it exists, and return it.

    Raises:
        UserError: it cannot be made.
    """
    path = Path(folder) / "log"
    with writing("train_url", path):
        path.mkdir(parents=True, exist_ok=True)
    return path


class _ColouredFormatter(logging.Formatter):
    """Yellow warnings and red errors, so that they stand out on a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno < logging.WARNING:
            return text
        return f"\033[{31 if record.levelno >= logging.ERROR else 33}m{text}\033[0m"


class _LogFile(logging.FileHandler):
    """A log file that a full disk leaves incomplete, with one warning on the terminal."""

    _complete = True

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, the name is the standard library's
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif self._complete:
            self._complete = False  # first, since the warning comes here as well
            logging.getLogger(LOGGER_NAME).warning(
                "%s cannot be written (%s) and lacks lines from here on", self.baseFilename, error.strerror or error
            )

    def close(self) -> None:
        with contextlib.suppress(OSError):  # the lines that are still in its buffer
            super().close()


def setup_logging(rank: int, folder: Optional[str] = None) -> logging.Logger:
    """Set up the logger `focal` of this process.

    Args:
        rank: rank of this process. Rank 0 prints INFO and above to the terminal, other ranks warnings. Warnings and
            errors are coloured there, unless NO_COLOR is set (https://no-color.org).
        folder: the job's train_url; every rank appends its log to `<folder>/log/rank_N.log`. None: no file.

    Returns:
        The logger. A second call replaces the handlers of the first.

    Raises:
        UserError: the folder cannot be written.
    """
    logger = logging.getLogger(LOGGER_NAME)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if hasattr(sys.stdout, "reconfigure"):  # file names may contain characters that the terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    terminal = logging.StreamHandler(sys.stdout)
    terminal.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    prefix = "" if rank == 0 else f"[rank {rank}] "
    form = f"{prefix}%(asctime)s %(levelname)s %(message)s"
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    terminal.setFormatter((_ColouredFormatter if coloured else logging.Formatter)(form, "%H:%M:%S"))
    logger.addHandler(terminal)
    if folder is not None:
        log_folder = make_log_folder(folder)
        with writing("train_url", log_folder):
            file = _LogFile(log_folder / f"rank_{rank}.log", encoding="utf-8", errors="backslashreplace")
        file.setFormatter(logging.Formatter(f"%(asctime)s rank {rank} %(levelname)s %(message)s"))
        logger.addHandler(file)
    return logger
