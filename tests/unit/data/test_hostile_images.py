"""Image files that claim or cost too much memory are refused, or handled, by a process that has little."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Callable

import pytest
from PIL import Image

MEMORY = 1 << 30  # bytes of address space
SIDE = 50_000

# Loads each image named on the command line, and says what came of it.
READER = f"""
import os, resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY}))
from focal.config import load_config
from focal.data import check_data, load_eval_image, EvalData, TrainData
from focal.errors import UserError
config = load_config({{"num_classes": 1, "batch_size": 1, "mix_up": 0, "cutmix": 0, "device_target": "CPU"}})
for path in sys.argv[1:]:
    if os.path.isdir(path):
        layout = check_data(config, path)
        TrainData(config, layout).load_batch(0, 0), EvalData(config, layout).load_batch(0)
        print(os.path.basename(path), "batches")
        continue
    try:
        print(os.path.basename(path), load_eval_image(path, config).shape)
    except UserError as error:
        print(os.path.basename(path), error)
"""


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def claims(side: int) -> dict[str, bytes]:
    """Files of a few bytes whose headers state `side` x `side` pixels, by name."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    gif = b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + bytes(6)
    gif += b"," + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\x02\x4c\x01\0;"
    bmp = b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, *[0] * 6)
    tags = [(256, 4, side), (257, 4, side), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1)]
    tags += [(278, 4, side), (279, 4, 0xFFFFFFF0)]
    tiff = b"II*\0" + struct.pack("<IH", 8, len(tags))
    tiff += b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags) + bytes(4)
    webp = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + 2 * struct.pack("<I", side - 1)[:3]
    webp += b"ANIM" + struct.pack("<I", 6) + bytes(6)
    jpeg2000 = b"\xff\x4f\xff\x51" + struct.pack(">HHIIIIIIIIH", 47, 0, side, side, 0, 0, side, side, 0, 0, 3)
    return {
        "a.jp2": jpeg2000 + 3 * b"\x07\x01\x01" + b"\xff\x52\0\x0c" + bytes(10),
        "a.png": b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(bytes(9))),
        "a.gif": gif,
        "a.bmp": bmp,
        "a.ppm": b"P6 %d %d 255\n" % (side, side),
        "a.tif": tiff,
        "a.webp": b"RIFF" + struct.pack("<I", 4 + len(webp)) + b"WEBP" + webp,
    }


@pytest.fixture
def read_with_little_memory(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """What a process with a gibibyte of memory makes of image files: name -> its line."""

    def read(*paths: Path) -> dict[str, str]:
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", READER, *map(str, paths)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        lines = dict(line.split(" ", 1) for line in done.stdout.splitlines())
        assert len(lines) == len(paths)
        return lines

    return read


def test_pixels_that_a_header_claims_or_a_shape_costs_stay_within_memory(
    tmp_path: Path, read_with_little_memory: Callable[..., dict[str, str]]
) -> None:
    for name, data in claims(SIDE).items():
        (tmp_path / name).write_bytes(data)
    bomb = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0))
    bomb += png_chunk(b"zTXt", b"comment\0\0" + zlib.compress(bytes(1 << 26))) + png_chunk(b"IEND", b"")
    (tmp_path / "text.png").write_bytes(bomb)
    for split in ("train", "val"):
        (tmp_path / "data" / split / "a").mkdir(parents=True)
        Image.new("RGB", (1, 60_000), "red").save(tmp_path / "data" / split / "a" / "tall.png")
    images = sorted(path for path in tmp_path.iterdir() if path.is_file())
    found = read_with_little_memory(*images, *(tmp_path / "data" / "val" / "a").iterdir(), tmp_path / "data")
    for name in claims(SIDE):
        assert "exceeds limit of 178956970 pixels" in found[name], found
    assert "too large" in found["text.png"] or "too much" in found["text.png"]
    assert found["tall.png"] == "(3, 224, 224)" and found["data"] == "batches"
