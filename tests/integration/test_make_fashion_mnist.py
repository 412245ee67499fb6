"""scripts/make_fashion_mnist.py, run as a user runs it, on small IDX files of the same form."""

from __future__ import annotations

import gzip
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]
IMAGES = np.random.default_rng(0).integers(0, 256, (25, 28, 28), dtype=np.uint8)
LABELS = np.arange(25, dtype=np.uint8) % 10


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """IDX files of 25 training pictures, compressed, and the first 12 of them again as test pictures, plain."""
    folder = tmp_path / "idx"
    folder.mkdir()
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(IMAGES)))
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(LABELS)))
    (folder / "t10k-images-idx3-ubyte").write_bytes(idx(IMAGES[:12]))
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx(LABELS[:12]))
    return folder


def make(folder: Path, source: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "scripts/make_fashion_mnist.py"), str(folder), "--source", str(source)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_every_picture_lands_in_the_folder_of_its_class(tmp_path: Path, source: Path) -> None:
    folder = tmp_path / "images"
    done = make(folder, source)
    assert done.returncode == 0, done.stderr
    assert "wrote 25 in train/, 12 in val/" in done.stderr
    assert len(list(folder.glob("train/*/*.png"))) == 25 and len(list(folder.glob("val/*/*.png"))) == 12
    for path, number in (("train/shirt/00016.png", 16), ("train/t-shirt_top/00000.png", 0), ("val/bag/00008.png", 8)):
        assert np.array_equal(np.asarray(Image.open(folder / path)), IMAGES[number])
    assert "is there already" in make(folder, source).stderr


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-labels-idx1-ubyte.gz", gzip.compress(idx(LABELS))[:-9], "cannot be read"),
        ("train-labels-idx1-ubyte.gz", b"no gzip", "cannot be read"),
        ("t10k-images-idx3-ubyte", idx(IMAGES[:12])[:-1], "not a whole IDX file"),
        ("t10k-images-idx3-ubyte", b"", "not a whole IDX file"),
        ("t10k-images-idx3-ubyte", idx(IMAGES[:11]), "are not those of Fashion-MNIST"),
        ("t10k-labels-idx1-ubyte", idx(LABELS[:12] + 1), "are not those of Fashion-MNIST"),
    ],
    ids=["cut gzip", "no gzip", "cut", "empty", "other number", "other labels"],
)
def test_a_damaged_file_is_named_and_nothing_is_written(
    tmp_path: Path, source: Path, name: str, content: bytes, message: str
) -> None:
    (source / name).write_bytes(content)
    done = make(tmp_path / "images", source)
    assert done.returncode == 2 and done.stderr.startswith("error: fashion-mnist: ") and message in done.stderr
    assert not (tmp_path / "images").exists()


def test_a_missing_file_is_an_error_that_says_where_to_get_it(tmp_path: Path) -> None:
    done = make(tmp_path / "images", tmp_path)
    assert done.returncode == 2 and "apt-get install dataset-fashion-mnist" in done.stderr
