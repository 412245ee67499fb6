"""MindRecord files: written by MindSpore's writer, read here by sample number.

One row per image: `image` (bytes, the image file as it is), `label` (int32) and `file_name` (string, `class/file`); the
last two are index fields. `classes.json` beside the files lists the class names. The files are ordinary MindRecord,
which `mindspore.dataset.MindDataset` reads as well (a test compares the two).

Why not with MindSpore's reader: batches need any sample by number, from any thread or process, and all labels and names
at the start, to put the samples into the folder's order. Tried on MindSpore 2.8.0 with 100,000 rows in four files:

- `FileReader` only streams rows in its own order.
- `MindDataset` with a `SubsetSampler` yields the rows asked for, in order, with any number of workers, but only rows
  chosen before it is opened; opening it for every sample takes 13 ms.
- `MindDataset.__getitem__`, which is undocumented, returns any row, in any thread. But it holds the interpreter's lock
  while it reads, so slow storage stops all threads; once it has been read from, it cannot be pickled, and forked
  workers that share it fail; and it reports damage in a page of C++ text.
- Listing labels and names takes it 8.5 s, the SQLite index 1.0 s: about 110 s or 13 s per rank for ImageNet.

The index also has the position of each image in its file, so reading an image is a seek and a read.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import sqlite3
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Optional

import numpy as np
from PIL import Image

from focal.data.decode import UnreadableImage, decode_rgb, refuse_shortage
from focal.data.folder import ImageFiles, ImageSource, pack_names
from focal.errors import UserError
from focal.files import write_json

logger = logging.getLogger("focal")

CLASSES_FILE = "classes.json"
_SIZE_PREFIX = 8  # bytes before an image that hold its length
_ROWS_AT_ONCE = 256
_MAX_BYTES = 32 * 1024 * 1024 - 1024  # of one image: a page of MindRecord, less what it adds


def find_shards(folder: str, split: str) -> list[str]:
    """Paths of `split`.mindrecord, or `split`.mindrecord0, 1, ... in `folder`, sorted; empty if there are none."""
    if not os.path.isdir(folder):
        return []
    pattern = re.compile(rf"{split}\.mindrecord\d*")
    return sorted(os.path.join(folder, name) for name in os.listdir(folder) if pattern.fullmatch(name))


def read_class_names(folder: str) -> Optional[tuple[str, ...]]:
    """The names in classes.json, or None if there is no such file."""
    path = os.path.join(folder, CLASSES_FILE)
    if not os.path.exists(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            names = json.load(file)
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"data_url: {path} must hold a JSON list of class names; write it again or remove it")
    return tuple(names)


class MindRecordSource:
    """The images of a set of MindRecord shards, sorted by label and name: the order of the folder they came from.

    Raises:
        UserError: a shard or its index is missing or damaged, or does not have the fields above.
    """

    def __init__(self, shards: list[str]) -> None:
        self._shards = shards
        rows: list[tuple[int, str, int, int, int]] = []  # label, name, shard, offset, size
        for number, shard in enumerate(shards):
            rows += [(label, name, number, offset, size) for label, name, offset, size in _read_index(shard, shards)]
        rows.sort()
        self.labels = np.array([row[0] for row in rows], dtype=np.int32)
        self._names = pack_names(row[1] for row in rows)
        self._places = np.array([row[2:] for row in rows], dtype=np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        shard, offset, size = self._places[index].tolist()
        try:
            with open(self._shards[shard], "rb", buffering=0) as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            refuse_shortage(error)
            raise UnreadableImage(str(error)) from error
        if len(data) < size:
            raise UnreadableImage("the MindRecord file ends early")
        return data

    def name(self, index: int) -> str:
        return f"{self._shards[int(self._places[index, 0])]}:{self.relative_name(index)}"

    def relative_name(self, index: int) -> str:
        """The path in the folder that the shards were written from, `class/file`."""
        return os.fsdecode(self._names[index])


def _read_index(shard: str, shards: list[str]) -> list[tuple[int, str, int, int]]:
    """(label, name, offset in the file, size) of each row of a shard."""
    try:
        with open(shard, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > os.path.getsize(shard):
                raise ValueError("no header")
            header = json.loads(file.read(size))
        _check_header(header, shard, shards)
        columns = {
            entry["index_field"]: f"{entry['index_field']}_{entry['schema_id']}" for entry in header["index_fields"]
        }
        label, name = columns["label"], columns.get("file_name", "ROW_ID")
        if not os.path.exists(shard + ".db"):
            raise UserError(f"data_url: {shard}.db, the index of {shard}, is missing; copy it or write the files again")
        index = Path(f"{shard}.db").resolve().as_uri()  # quotes names that hold #, ? or %
        with contextlib.closing(sqlite3.connect(f"{index}?mode=ro", uri=True)) as database:
            query = f"SELECT {label}, {name}, PAGE_ID_BLOB, PAGE_OFFSET_BLOB, PAGE_OFFSET_BLOB_END FROM INDEXES"
            rows = database.execute(query).fetchall()
        written = max((page["end_row_id"] for page in header["page"] if page["page_type"] == "BLOB_DATA"), default=0)
        if len(rows) != written:
            raise ValueError(f"its index lists {len(rows)} of {written} images")
        start, page_size = header["header_size"], header["page_size"]
    except UserError:
        raise
    except (OSError, ValueError, KeyError, sqlite3.Error) as error:
        raise UserError(
            f"data_url: {shard} is not a MindRecord file as written by scripts/make_mindrecord.py ({error})"
        ) from None
    return [
        (label, str(name), start + page * page_size + begin + _SIZE_PREFIX, end - begin - _SIZE_PREFIX)
        for label, name, page, begin, end in rows
    ]


def _check_header(header: dict[str, Any], shard: str, shards: list[str]) -> None:
    present = {os.path.basename(path) for path in shards}
    missing = [name for name in header["shard_addresses"] if os.path.basename(name) not in present]
    if missing:
        raise UserError(f"data_url: {missing[0]} is missing beside {shard}; all shards of a split belong together")
    blobs = header["schema"][0]["blob_fields"]
    if len(blobs) != 1 or header.get("compression_size"):
        raise UserError(
            f"data_url: {shard} has byte fields {blobs}; one uncompressed field, the image file, is expected"
        )
    if "label" not in [entry["index_field"] for entry in header["index_fields"]]:
        raise UserError(f"data_url: {shard} has no index on `label`; write it with scripts/make_mindrecord.py")


def check_output(output: Path, class_names: Optional[tuple[str, ...]], sources: Mapping[str, ImageFiles]) -> None:
    """Check, before hours of writing, that splits can be written to `output`; makes the folder and classes.json.

    Args:
        output: the folder for the MindRecord files.
        class_names: by label; None if they are not known, then there will be no classes.json.
        sources: the images of each split.

    Raises:
        UserError: `output` holds one of the splits already, or splits with other classes, or cannot be written; a file
            name is not UTF-8.
    """
    for split, source in sources.items():
        for name in map(source.relative_name, range(len(source))):
            if any("\udc80" <= character <= "\udcff" for character in name):  # what Python decodes other bytes to
                raise UserError(f"data_url: the name of {name!r} is not UTF-8, which MindRecord needs; rename the file")
        _refuse_existing(output, split)
    try:
        output.mkdir(parents=True, exist_ok=True)
        # classes.json without any split is left over from a failed conversion.
        has_split = any(find_shards(str(output), split) for split in ("train", "val"))
        present = read_class_names(str(output)) if has_split else None
        if present is None and class_names is not None:
            write_json(output / CLASSES_FILE, list(class_names), indent=0)
    except OSError as error:
        raise UserError(f"output: {output} cannot be written ({error.strerror or error})") from None
    if present not in (None, class_names):
        raise UserError(f"output: {output / CLASSES_FILE} lists other classes than the data; choose another folder")


def _refuse_existing(output: Path, split: str) -> None:
    if find_shards(str(output), split):
        raise UserError(
            f"output: {output} holds {split}.mindrecord files already; remove them or choose another folder"
        )


def write_mindrecord(
    source: ImageFiles, output: Path, split: str, shards: int, short_side: Optional[int], workers: int
) -> None:
    """Write one split; if that fails, the files written so far are removed.

    Args:
        source: the images; their bytes are copied as they are, even if they cannot be decoded.
        output: the folder for the files.
        split: train or val.
        shards: number of files.
        short_side: resize images whose shorter side is longer to this many pixels (bicubic, JPEG quality 95).
        workers: threads that read and resize.

    Raises:
        UserError: `output` holds this split; a file cannot be read, or is larger than 32 MiB; the disk is full.
    """
    from mindspore.mindrecord import FileWriter

    def row(index: int) -> dict[str, Any]:
        image = _image_bytes(source, index, short_side)
        return {"image": image, "label": int(source.labels[index]), "file_name": source.relative_name(index)}

    _refuse_existing(output, split)
    with _removed_on_failure(output, split):
        writer = FileWriter(str(output / f"{split}.mindrecord"), shard_num=shards)
        schema = {"image": {"type": "bytes"}, "label": {"type": "int32"}, "file_name": {"type": "string"}}
        writer.add_schema(schema, f"{split} images: the bytes of image files, class numbers by classes.json")
        writer.add_index(["label", "file_name"])
        with ThreadPoolExecutor(workers) as pool:
            for start in range(0, len(source), _ROWS_AT_ONCE):
                rows = list(pool.map(row, range(start, min(start + _ROWS_AT_ONCE, len(source)))))
                writer.write_raw_data(rows)
                logger.info("%s: %d of %d images", split, start + len(rows), len(source))
        writer.commit()


@contextlib.contextmanager
def _removed_on_failure(output: Path, split: str) -> Iterator[None]:
    """Remove the files of a split if the block that writes them fails."""
    try:
        yield
    except BaseException as error:
        for shard in find_shards(str(output), split):
            for path in (shard, f"{shard}.db"):
                with contextlib.suppress(OSError):
                    os.remove(path)
        if isinstance(error, (OSError, RuntimeError)):  # MindSpore's writer raises RuntimeError if the disk is full
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"output: {split} cannot be written to {output} ({reason})") from None
        raise


def _image_bytes(source: ImageSource, index: int, short_side: Optional[int]) -> bytes:
    """What is stored of an image."""
    try:
        data = source.read(index)
    except UnreadableImage as error:
        raise UserError(f"data_url: cannot read {source.name(index)} ({error})") from None
    if short_side is not None:
        data = shrink(data, short_side)
    if len(data) > _MAX_BYTES:
        raise UserError(
            f"data_url: {source.name(index)} has {len(data)} bytes, more than a page of MindRecord (32 MiB);"
            " give --short_side or shrink the image"
        )
    return data or b"\0"  # a field cannot be empty; one zero byte is as unreadable as an empty file


def shrink(data: bytes, short_side: int) -> bytes:
    """The image file with its shorter side resized to `short_side`; unchanged if it is not longer, or unreadable."""
    try:
        image = decode_rgb(data)
    except UnreadableImage:
        return data
    width, height = image.size
    ratio = short_side / min(width, height)
    if ratio >= 1:
        return data
    size = (max(short_side, round(width * ratio)), max(short_side, round(height * ratio)))
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()
