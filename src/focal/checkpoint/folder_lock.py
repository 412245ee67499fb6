"""One training at a time in a folder.

The lock is one of the operating system (flock): it ends with the process that holds it, however that ends, and only a
file without meaning remains. Processes that are forked from this one, such as workers that read data, drop their copy
of the lock; otherwise a worker that outlives a killed training would keep the next one out. The ranks of a job know by
a variable of the environment that their launcher has the lock. What the file says of its owner cannot tell them: it may
be missing (the disk was full) or unreadable (on some file systems a lock keeps readers out, too), and in a container
process 1 is the parent of every orphan, other trainings included.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import time
from pathlib import Path
from typing import Any

from focal.errors import UserError
from focal.files import LOCK_FILE, writing

logger = logging.getLogger("focal")

LOCKED_VARIABLE = "FOCAL_LOCKED"  # in the environment of a process that has a lock and of those it starts: its path
_held: dict[str, int] = {}  # folder -> file descriptor, for the rest of this process


def lock_folder(folder: str) -> None:
    """Keep other trainings out of `folder` until this process ends; it is made if it is missing.

    Nothing happens if this process has the lock already, or the launcher that started it. A file system that offers no
    locks gets a warning instead.

    Args:
        folder: the `train_url` of the training.

    Raises:
        UserError: another training is at work there, or the folder cannot be written.
    """
    path = Path(os.path.realpath(folder)) / LOCK_FILE
    if str(path) in _held:
        return
    with writing("train_url", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = _read_owner(descriptor)
        os.close(descriptor)
        if os.environ.get(LOCKED_VARIABLE) != str(path):
            raise UserError(_refusal(folder, owner)) from None
        return
    except OSError as error:
        os.close(descriptor)
        logger.warning(
            "train_url: the file system of %s offers no locks (%s); make sure that no other training writes there",
            folder, error.strerror or error,
        )  # fmt: skip
        return
    if not _held:
        os.register_at_fork(after_in_child=_close_all)
    _held[str(path)] = descriptor
    os.environ[LOCKED_VARIABLE] = str(path)
    owner = {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    with contextlib.suppress(OSError):  # a full disk: the lock holds, its owner stays unnamed
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(owner).encode(), 0)


def _close_all() -> None:
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


def _read_owner(descriptor: int) -> dict[str, Any]:
    """What the holder of the lock has written about itself; empty if that cannot be read."""
    try:
        owner = json.loads(os.pread(descriptor, 1000, 0))
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _refusal(folder: str, owner: dict[str, Any]) -> str:
    named = owner.keys() >= {"process", "host", "since"}
    who = "process {process} on {host}, since {since}".format(**owner) if named else "an unknown process"
    message = (
        f"train_url: {folder} is in use by another training ({who}); wait until it ends, stop it, or give another "
        "train_url"
    )
    if owner.get("host") != socket.gethostname():  # a file server keeps a lock until it misses the one that held it
        message += f"; if that server has crashed, wait two minutes or remove {Path(folder) / LOCK_FILE}"
    return message
