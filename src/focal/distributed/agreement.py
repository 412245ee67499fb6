"""Do all ranks have the same settings, data and code?

Gradients are averaged over the ranks. If one of them computes something else, training goes on without any sign of it:
replicas drift apart, or a label means two classes. So ranks compare digests before they work together, and where these
differ, look for the first entry that does.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Callable, NamedTuple, Optional

import numpy as np

from focal.config import Config, to_flat_dict
from focal.config.schema import may_change_on_resume
from focal.distributed.collectives import all_reduce_sum
from focal.distributed.device import Device
from focal.errors import UserError
from focal.files import crc32_of

# Keys that may change when a training resumes, but decide when the ranks meet or what they do there.
MEETING_KEYS = (
    "eval_batch_size", "crop_ratio", "skip_unreadable", "max_nonfinite_steps", "graph_mode", "dataset_sink_mode",
    "jit_level", "eval_every", "save_every", "save_steps", "log_steps", "max_steps",
)  # fmt: skip
_PACKAGE = Path(__file__).resolve().parents[1]  # src/focal
_BLOCKS = 512  # digests per exchange while the first difference is searched for
_TEXT_BYTES = 160  # of an entry, in the message


class Listing(NamedTuple):
    """Something that all ranks must have in common, as a list of entries in a fixed order.

    Attributes:
        name: for messages.
        length: number of entries.
        entry: the entry of that index, as text.
    """

    name: str
    length: int
    entry: Callable[[int], str]

    @classmethod
    def of(cls, name: str, entries: Sequence[str]) -> Listing:
        """A listing of texts that are at hand."""
        return cls(name, len(entries), entries.__getitem__)


def settings_listing(config: Config) -> Listing:
    """The settings that must be the same on every server: not those about its devices and paths."""
    flat = to_flat_dict(config)
    compared = [name for name in flat if not may_change_on_resume(name) or name in MEETING_KEYS]
    return Listing.of("settings", [f"{name}: {flat[name]!r}" for name in compared])


def source_listing(package: Path = _PACKAGE, script: Optional[Path] = None) -> Listing:
    """The source files of this package and then the running script, each with the digest of its content.

    Hidden files and folders are left out: editors keep locks and copies there.

    Args:
        package: the folder of the package.
        script: the running script; None: what Python was started with, if that is a file.

    Raises:
        UserError: a file cannot be read.
    """
    inner = {path.relative_to(package): path for path in package.rglob("*.py")}
    files = {name.as_posix(): path for name, path in sorted(inner.items()) if not _is_hidden(name)}
    started = script or getattr(sys.modules["__main__"], "__file__", None)
    if started is not None:
        files[f"the script {Path(started).name}"] = Path(started)
    return Listing.of("source code", [f"{name} (SHA-256 {_sha256_of(path)})" for name, path in files.items()])


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _sha256_of(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise UserError(
            f"source code: {path} cannot be read ({error.strerror or error}), so it cannot be compared with that of "
            "the other servers; restore or remove it"
        ) from None


def file_listing(name: str, path: Optional[str]) -> Listing:
    """A file that each server reads for itself, by the CRC-32 of its content; it may lie elsewhere on each of them.

    Args:
        name: the key that names the file.
        path: the file, None without one.
    """

    def entry(_: int) -> str:
        if path is None:
            return f"no {name}"
        try:
            return f"a file with CRC-32 {crc32_of(Path(path)):08x}"
        except OSError as error:
            return f"{path}, which cannot be read ({error.strerror or error})"

    return Listing(f"{name} file", 1, entry)


def check_agreement(listings: Sequence[Listing], device: Device) -> None:
    """Refuse a job whose ranks differ. Every rank must call it, with listings of the same names.

    Raises:
        UserError: on every rank; it names the listings that differ, the ranks, and the first entry that does.
    """
    if device.world_size == 1:
        return
    table = _digests_of_ranks([_digest(listing, 0, listing.length) for listing in listings], device)
    different = (table != table[:1]).any(axis=2)  # (world_size, listings)
    if not different.any():
        return
    names = [listing.name for listing, differs in zip(listings, different.any(axis=0)) if differs]
    ranks = np.flatnonzero(different.any(axis=1)).tolist()
    first = listings[int(np.argmax(different.any(axis=0)))]
    place = _first_difference(first, device)
    texts = _texts_of_ranks(first.entry(place) if place < first.length else "nothing", device)
    other = next((rank for rank in ranks if texts[rank] != texts[0]), ranks[0])
    raise UserError(
        f"the servers of this job differ in their {' and '.join(names)}: rank {', '.join(map(str, ranks[:8]))}"
        f"{', ...' if len(ranks) > 8 else ''} from rank 0; first in the {first.name}: {texts[0]} on rank 0, "
        f"{texts[other]} on rank {other}; start all servers with the same settings, data and code"
    )


def _first_difference(listing: Listing, device: Device) -> int:
    """Index of the first entry that is not the same on all ranks; there may be none in a shorter list."""
    lengths = _rows_of_ranks(np.array([listing.length // 4096, listing.length % 4096], np.float32), device)
    begin, size = 0, int((lengths[:, 0] * 4096 + lengths[:, 1]).max())
    while size > 1:
        step = -(-size // _BLOCKS)
        starts = range(begin, begin + size, step)
        table = _digests_of_ranks([_digest(listing, start, start + step) for start in starts], device)
        begin, size = starts[int(np.argmax((table != table[:1]).any(axis=(0, 2))))], step
    return begin


def _digest(listing: Listing, begin: int, end: int) -> bytes:
    """Eight bytes that stand for the entries of a range."""
    total = hashlib.sha256()
    for index in range(begin, min(end, listing.length)):
        total.update(listing.entry(index).encode(errors="backslashreplace") + b"\0")
    return total.digest()[:8]


def _digests_of_ranks(digests: Sequence[bytes], device: Device) -> np.ndarray:
    """(world_size, digests, 4): each digest as 16-bit words, which float32 holds exactly."""
    words = np.frombuffer(b"".join(digests), np.uint16).astype(np.float32)
    return _rows_of_ranks(words, device).reshape(device.world_size, len(digests), 4)


def _texts_of_ranks(text: str, device: Device) -> list[str]:
    """The text of every rank, cut to `_TEXT_BYTES`."""
    encoded = text.encode(errors="backslashreplace")[:_TEXT_BYTES]
    row = np.zeros(_TEXT_BYTES, np.float32)
    row[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    table = _rows_of_ranks(row, device).astype(np.uint8)
    return [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in table]


def _rows_of_ranks(row: np.ndarray, device: Device) -> np.ndarray:
    """(world_size, len(row)): the rows of all ranks; an all-gather as a sum, which every device can do."""
    table = np.zeros((device.world_size, len(row)), np.float32)
    table[device.rank] = row
    return all_reduce_sum(table)
