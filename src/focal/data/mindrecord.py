"""MindRecord files: written by MindSpore's writer, read by sample number.

MindSpore's reader streams rows in an order of its own; batches here are made from sample numbers, by any worker, so
the few lines below look a row up in the file's SQLite index and read its bytes in place. The files stay ordinary
MindRecord that `mindspore.dataset.MindDataset` reads as well (tests compare the two).

One row per image: `image` (bytes, the image file as it is), `label` (int32), `file_name` (string, `class/file`); the
last two are index fields. `classes.json` beside the files lists the class names.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Iterator, Optional

import numpy as np
from PIL import Image

from focal.data.decode import UnreadableImage, decode_rgb
from focal.data.sources import ImageSource, PackedStrings
from focal.errors import UserError

logger = logging.getLogger("focal")

CLASSES_FILE = "classes.json"
_SIZE_PREFIX = 8  # bytes before a blob, holding its length
_ROWS_AT_ONCE = 256
_MOST_BYTES = 32 * 1024 * 1024 - 1024  # of one image: MindRecord's page, less what it adds


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
        UserError: a shard or its index is missing or damaged, or the fields are others.
    """

    def __init__(self, shards: list[str]) -> None:
        self._shards = shards
        rows: list[tuple[int, str, int, int, int]] = []  # label, name, shard, offset, size
        for number, shard in enumerate(shards):
            rows += [(label, name, number, offset, size) for label, name, offset, size in _read_index(shard, shards)]
        rows.sort()
        self.labels = np.array([row[0] for row in rows], dtype=np.int32)
        self._names = PackedStrings(row[1] for row in rows)
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
            raise UnreadableImage(str(error)) from error
        if len(data) < size:
            raise UnreadableImage("the MindRecord file ends early")
        return data

    def name(self, index: int) -> str:
        return f"{self._shards[int(self._places[index, 0])]}:{self._names[index]}"


def _read_index(shard: str, shards: list[str]) -> list[tuple[int, str, int, int]]:
    """(label, name, offset in the file, size) of each row of a shard."""
    try:
        with open(shard, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > os.path.getsize(shard):
                raise ValueError("no header")
            header = json.loads(file.read(size))
        _check_header(header, shard, shards)
        fields = {
            entry["index_field"]: f"{entry['index_field']}_{entry['schema_id']}" for entry in header["index_fields"]
        }
        name = fields.get("file_name", "ROW_ID")
        if not os.path.exists(shard + ".db"):
            raise UserError(f"data_url: {shard}.db, the index of {shard}, is missing; copy it or write the files again")
        query = f"SELECT {fields['label']}, {name}, PAGE_ID_BLOB, PAGE_OFFSET_BLOB, PAGE_OFFSET_BLOB_END FROM INDEXES"
        index = Path(f"{shard}.db").resolve().as_uri()  # quoted: names may hold #, ? and %
        with contextlib.closing(sqlite3.connect(f"{index}?mode=ro", uri=True)) as database:
            rows = database.execute(query).fetchall()
        written = max((page["end_row_id"] for page in header["page"] if page["page_type"] == "BLOB_DATA"), default=0)
        if len(rows) != written:
            raise ValueError(f"its index lists {len(rows)} of {written} images")
    except (OSError, ValueError, KeyError, sqlite3.Error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"data_url: {shard} is not a MindRecord file as written by scripts/make_mindrecord.py ({error})"
        ) from None
    start = header["header_size"]
    return [
        (label, str(name), start + page * header["page_size"] + begin + _SIZE_PREFIX, end - begin - _SIZE_PREFIX)
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


def write_mindrecord(
    source: ImageSource,
    names: list[str],
    output: Path,
    split: str,
    shards: int,
    short_side: Optional[int],
    workers: int,
) -> None:
    """Write one split.

    Args:
        source: the images; their bytes are copied as they are, whether or not they can be decoded.
        names: `class/file` of each.
        output: folder for the files.
        shards: number of files.
        short_side: images whose shorter side is longer are resized to it (bicubic, JPEG quality 95); None: never.
        workers: threads that read and resize.

    What was written is removed if it fails.

    Raises:
        UserError: `output` holds this split; a file that cannot be read, or is larger than 32 MiB; a full disk.
    """
    from mindspore.mindrecord import FileWriter

    _refuse_existing(output, split)
    with _all_or_nothing(output, split):
        writer = FileWriter(str(output / f"{split}.mindrecord"), shard_num=shards)
        schema = {"image": {"type": "bytes"}, "label": {"type": "int32"}, "file_name": {"type": "string"}}
        writer.add_schema(schema, f"{split} images: the bytes of image files, class numbers by classes.json")
        writer.add_index(["label", "file_name"])

        def row(index: int) -> dict[str, Any]:
            data = _stored_bytes(source, index, short_side)
            return {"image": data, "label": int(source.labels[index]), "file_name": names[index]}

        with ThreadPoolExecutor(workers) as pool:
            for start in range(0, len(source), _ROWS_AT_ONCE):
                rows = list(pool.map(row, range(start, min(start + _ROWS_AT_ONCE, len(source)))))
                writer.write_raw_data(rows)
                logger.info("%s: %d of %d images", split, start + len(rows), len(source))
        writer.commit()


@contextlib.contextmanager
def _all_or_nothing(output: Path, split: str) -> Iterator[None]:
    """Removes what was written of a split if the rest cannot be."""
    try:
        yield
    except BaseException as error:
        for shard in find_shards(str(output), split):
            for left_over in (shard, f"{shard}.db"):
                with contextlib.suppress(OSError):
                    os.remove(left_over)
        if isinstance(error, (OSError, RuntimeError)):  # MindSpore's writer raises RuntimeError on a full disk
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"output: {split} cannot be written to {output} ({reason})") from None
        raise


def _stored_bytes(source: ImageSource, index: int, short_side: Optional[int]) -> bytes:
    try:
        data = source.read(index)
    except UnreadableImage as error:
        raise UserError(f"data_url: cannot read {source.name(index)} ({error})") from None
    if short_side is not None:
        data = shrink(data, short_side)
    if len(data) > _MOST_BYTES:
        raise UserError(
            f"data_url: {source.name(index)} has {len(data)} bytes, more than a page of MindRecord (32 MiB);"
            " give --short_side or shrink the image"
        )
    return data or b"\0"  # an empty file, which no field can hold; as unreadable as before


def check_output(output: Path, class_names: tuple[str, ...], names: dict[str, list[str]]) -> None:
    """Check, before hours of writing, that the splits can be written to `output`, which is made.

    Args:
        output: folder for the files.
        class_names: of the data.
        names: `class/file` of each image, by split.

    Raises:
        UserError: it holds one of them already, or splits of other classes; or it cannot be written; a file name is not
            UTF-8.
    """
    for name in (name for split in names.values() for name in split):
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError(f"data_url: the name of {name!r} is not UTF-8, which MindRecord needs; rename it") from None
    for split in names:
        _refuse_existing(output, split)
    try:
        output.mkdir(parents=True, exist_ok=True)
        empty = not any(find_shards(str(output), split) for split in ("train", "val"))
        if empty or read_class_names(str(output)) is None:  # a list without files is of a conversion that failed
            write_class_names(class_names, output)
    except OSError as error:
        raise UserError(f"output: {output} cannot be written ({error.strerror or error})") from None
    if read_class_names(str(output)) != class_names:
        raise UserError(f"output: {output / CLASSES_FILE} lists other classes than the data; choose another folder")


def _refuse_existing(output: Path, split: str) -> None:
    if find_shards(str(output), split):
        raise UserError(
            f"output: {output} holds {split}.mindrecord files already; remove them or choose another folder"
        )


def write_class_names(class_names: tuple[str, ...], output: Path) -> None:
    (output / CLASSES_FILE).write_text(json.dumps(list(class_names), indent=0) + "\n", encoding="utf-8")


def shrink(data: bytes, short_side: int) -> bytes:
    """The image file with its shorter side resized to `short_side`; unchanged if it is no longer, or unreadable."""
    try:
        image = decode_rgb(data)
    except UnreadableImage:
        return data
    ratio = short_side / min(image.size)
    if ratio >= 1:
        return data
    size = tuple(max(short_side, round(side * ratio)) for side in image.size)
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()
