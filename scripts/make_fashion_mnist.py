"""Write Fashion-MNIST as an image folder: python scripts/make_fashion_mnist.py FOLDER [--source IDX_FOLDER]

70,000 grey product pictures of 28 x 28 pixels in ten classes (Xiao, Rasul and Vollgraf 2017, MIT licence): 60,000 for
training, and the 10,000 test pictures as val. The four IDX files, with or without .gz, come with Debian's package
dataset-fashion-mnist (apt-get install dataset-fashion-mnist) or from github.com/zalandoresearch/fashion-mnist.
"""

from __future__ import annotations

import gzip
import logging
import math
import shutil
import sys
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from focal.config.help import script_parser  # noqa: E402
from focal.errors import UserError, run_main  # noqa: E402
from focal.files import temporary_path  # noqa: E402

logger = logging.getLogger("focal")

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FILE_PREFIXES = {"train": "train", "val": "t10k"}
CLASSES = (
    "t-shirt_top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle_boot",
)  # by label
_UINT8 = 8  # the code of unsigned bytes in the header of an IDX file


def write_fashion_mnist(folder: Path, source: Path) -> None:
    """Write `folder`/train and `folder`/val with a folder of PNG files per class; what is there already is kept.

    Args:
        folder: where to make train/ and val/. Names are the picture's number in the IDX file.
        source: folder with the four IDX files.

    Raises:
        UserError: an IDX file is missing or damaged, or `folder` holds something else.
    """
    if (folder / "val").is_dir():
        logger.info("fashion-mnist: %s is there already", folder)
        return
    if folder.exists():
        raise UserError(f"fashion-mnist: {folder} is there, but holds no val/; remove it or name another folder")
    splits = {split: _read_split(source, prefix) for split, prefix in FILE_PREFIXES.items()}
    partial = temporary_path(folder)
    shutil.rmtree(partial, ignore_errors=True)
    for split, (images, labels) in splits.items():
        for name in CLASSES:
            (partial / split / name).mkdir(parents=True)
        for number, (image, label) in enumerate(zip(images, labels)):
            Image.fromarray(image).save(partial / split / CLASSES[label] / f"{number:05d}.png")
    partial.rename(folder)
    counts = ", ".join(f"{len(labels):,} in {split}/" for split, (_, labels) in splits.items())
    logger.info("fashion-mnist: wrote %s of %s", counts, folder)


def _read_split(source: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Pictures, uint8 (N, 28, 28), and labels, uint8 (N,)."""
    images = read_idx(_find(source, f"{prefix}-images-idx3-ubyte"))
    labels = read_idx(_find(source, f"{prefix}-labels-idx1-ubyte"))
    if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1] or (labels >= len(CLASSES)).any():
        raise UserError(
            f"fashion-mnist: {source}/{prefix}-*: pictures {images.shape} and labels {labels.shape} are not those of "
            "Fashion-MNIST"
        )
    return images, labels


def _find(source: Path, name: str) -> Path:
    for path in (source / name, source / f"{name}.gz"):
        if path.is_file():
            return path
    raise UserError(
        f"fashion-mnist: {source / name}[.gz] does not exist; apt-get install dataset-fashion-mnist brings it, or name "
        "the folder of the IDX files with --source"
    )


def read_idx(path: Path) -> np.ndarray:
    """The array of unsigned bytes in an IDX file, compressed by gzip if it ends in .gz.

    The header is two zero bytes, the code of the type, the number of axes, and each axis's length as a big-endian
    32-bit integer (yann.lecun.com/exdb/mnist).

    Raises:
        UserError: the file is not a whole IDX file of bytes.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"fashion-mnist: {path} cannot be read ({error}); fetch it again") from None
    axes = data[3] if len(data) > 3 else 0
    header = 4 + 4 * axes
    shape = tuple(int(length) for length in np.frombuffer(data[4:header], ">u4")) if len(data) >= header else ()
    if data[:3] != bytes((0, 0, _UINT8)) or not shape or len(data) != header + math.prod(shape):
        raise UserError(f"fashion-mnist: {path} is not a whole IDX file of bytes; fetch it again")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def main() -> None:
    """Write train/ and val/ below the folder named on the command line."""
    parser = script_parser(__doc__)
    parser.add_argument("folder", type=Path, help="where to make train/ and val/")
    parser.add_argument("--source", type=Path, default=DEBIAN_FOLDER, help="folder of the IDX files (%(default)s)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    write_fashion_mnist(arguments.folder, arguments.source)


if __name__ == "__main__":
    run_main(main)
