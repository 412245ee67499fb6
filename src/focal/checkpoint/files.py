"""One checkpoint file: written atomically with a checksum, verified when read.

A file has MindSpore's own format (`mindspore.load_checkpoint` reads it) with its CRC-32 at the end. In addition to the
tensors it holds one text entry, `focal.meta`: JSON with everything that is not a tensor (epoch, step, configuration,
accuracy). A parameter of the network is stored under its official name and its EMA weight under `ema.<name>`; the other
tensors are optimizer state and counters. A file without `focal.meta` holds weights from elsewhere, for example from
scripts/convert_weights.py. Every file that we write begins with `focal.entries`, the number of its tensors.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Callable, Optional

import mindspore as ms
import numpy as np
from mindspore import Tensor

from focal.errors import UserError, one_line
from focal.files import atomic_write, crc32_of
from focal.models.layers import RANDOM_COUNTER

EMA_PREFIX = "ema."  # the average of parameter `<name>` is stored as `ema.<name>`
META = "focal.meta"
META_FORMAT = 1
ENTRIES = "focal.entries"
_OWN_ENTRIES = (EMA_PREFIX, RANDOM_COUNTER, "optimizer.step")  # start names that only our trainings write
_CRC_MARK, _CRC_LENGTH = b"crc_num", 17  # MindSpore ends a file with this mark and, in 10 bytes, its CRC-32


class CheckpointError(UserError):
    """A file is missing, unreadable or not a whole checkpoint; the message names it and gives the reason."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Contents of a file: tensors by name, and the metadata (None for weights from elsewhere)."""

    path: Path
    tensors: dict[str, np.ndarray]
    meta: Optional[dict[str, Any]]


def write_checkpoint(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    meta: Optional[Mapping[str, Any]],
    before_replace: Callable[[], object] = lambda: None,
) -> None:
    """Write a checkpoint atomically.

    Args:
        path: the file, ending in .ckpt.
        tensors: arrays by name.
        meta: metadata that JSON can represent; None writes a file of weights alone.
        before_replace: see `focal.files.atomic_write`.

    Raises:
        OSError: the file could not be written (disk full, no permission); what was at `path` is untouched.
    """
    entries = [{"name": ENTRIES, "data": Tensor(len(tensors), ms.int32)}]
    entries += [{"name": name, "data": Tensor(value)} for name, value in tensors.items()]
    texts = {} if meta is None else {META: json.dumps({"format": META_FORMAT, **meta})}
    with atomic_write(path, before_replace) as temporary:
        try:
            with _quiet_mindspore():
                ms.save_checkpoint(entries, str(temporary), append_dict=texts, crc_check=True)
            os.chmod(temporary, 0o644)  # save_checkpoint leaves 0400, which nobody could overwrite or share
        except OSError:
            raise
        except Exception as error:  # MindSpore raises RuntimeError on a full disk
            raise OSError(f"cannot write {path}: {one_line(error)}") from error
        finally:
            with contextlib.suppress(OSError):
                temporary.with_suffix(".tmp").unlink()  # what save_checkpoint itself writes to


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint and verify that it is whole.

    Raises:
        CheckpointError: the file does not exist, cannot be read, or is not a whole checkpoint.
    """
    path = Path(path)
    if os.path.isdir(path):
        raise CheckpointError(f"checkpoint: {path} is a folder; name a file in it, e.g. {path}/checkpoints/last.ckpt")
    try:
        found = _checksums(path)
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint: {path} does not exist") from None
    except OSError as error:
        raise CheckpointError(f"checkpoint: {path} cannot be read ({error.strerror or error})") from None
    if path.suffix != ".ckpt":  # load_checkpoint insists
        raise CheckpointError(f"checkpoint: {path} is not a MindSpore checkpoint: its name does not end in .ckpt")
    has_checksum = found is not None
    if found is not None and found[0] != found[1]:
        raise CheckpointError(f"checkpoint: {path} is damaged: its contents do not have the checksum at its end")
    try:
        with _quiet_mindspore():
            loaded = ms.load_checkpoint(str(path))
    except Exception as error:  # MindSpore's own messages guess at permissions; the cause below them is what happened
        cause = error.__cause__ or error
        if isinstance(cause, MemoryError) or not isinstance(cause, Exception):  # or Ctrl-C: no fault of the file
            raise cause from None
        reason = one_line(cause)
        raise CheckpointError(f"checkpoint: {path} is damaged or not a MindSpore checkpoint ({reason})") from None
    text, entries = loaded.pop(META, None), loaded.pop(ENTRIES, None)
    # A file that is cut between two entries still parses, but has lost the metadata and the checksum at its end.
    if entries is not None and int(entries) != len(loaded):
        raise CheckpointError(f"checkpoint: {path} is cut off: it has {len(loaded)} of {int(entries)} tensors")
    ours = text is not None or entries is not None or any(name.startswith(_OWN_ENTRIES) for name in loaded)
    if ours and not has_checksum:
        raise CheckpointError(f"checkpoint: {path} is cut off: its checksum is missing")
    # Files from elsewhere may hold texts and numbers, too.
    tensors = {name: value.asnumpy() for name, value in loaded.items() if hasattr(value, "asnumpy")}
    return Checkpoint(path, tensors, None if text is None else _parse_meta(str(text), path))


def _parse_meta(text: str, path: Path) -> dict[str, Any]:
    try:
        meta: dict[str, Any] = json.loads(text)
        version = meta["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"checkpoint: {path} has no readable {META} ({one_line(error)})") from None
    if version != META_FORMAT:
        raise CheckpointError(f"checkpoint: {path} has format {version}, but this program reads {META_FORMAT}")
    return meta


def _checksums(path: Path) -> Optional[tuple[int, int]]:
    """The CRC-32 at the end of a file and that of what lies before it; None if the file carries none."""
    with path.open("rb") as file:
        end = max(file.seek(0, os.SEEK_END) - _CRC_LENGTH, 0)
        file.seek(end)
        tail = file.read(_CRC_LENGTH)
    if not tail.startswith(_CRC_MARK):
        return None
    return int.from_bytes(tail[len(_CRC_MARK) :], "big"), crc32_of(path, end)


@contextlib.contextmanager
def _quiet_mindspore() -> Iterator[None]:
    """Keep MindSpore from logging an error that is reported in one line here."""
    loggers = [logging.getLogger("MindSpore"), getattr(ms.log, "GLOBAL_LOGGER", None)]
    levels = [(logger, logger.level) for logger in loggers if logger is not None]
    for logger, _ in levels:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)
