"""Write scikit-learn's handwritten digits as an image folder: python scripts/make_digits.py FOLDER

1,797 real digits (UCI optical recognition of handwritten digits): 1,437 for training, 360 for validation.
"""

from __future__ import annotations

import logging
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

TRAIN_IMAGES = 1437
PIXELS = 64


def write_digits(folder: str) -> Path:
    """Write `folder`/train (1,437 images) and `folder`/val (360), a folder per digit, 64 x 64 PNG; reuse what is there.

    Raises:
        UserError: scikit-learn is missing.
    """
    target = Path(folder)
    if (target / "val").is_dir():
        logger.info("digits: %s is there already", target)
        return target
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError("digits: need scikit-learn; pip install -r requirements-dev.txt") from None
    digits = load_digits()
    order = np.random.Generator(np.random.PCG64(zlib.crc32(b"order"))).permutation(len(digits.images))
    partial = temporary_path(target)
    shutil.rmtree(partial, ignore_errors=True)
    for split, chosen in (("train", order[:TRAIN_IMAGES]), ("val", order[TRAIN_IMAGES:])):
        for index in chosen:
            path = partial / split / str(digits.target[index]) / f"{index:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            _as_image(digits.images[index]).save(path)
    partial.rename(target)
    logger.info("digits: wrote %d images to %s", len(order), target)
    return target


def _as_image(digit: np.ndarray) -> Image.Image:
    """(8, 8) of 0..16 -> grey image of 64 x 64, each pixel repeated."""
    repeated = np.kron(digit, np.ones((PIXELS // 8, PIXELS // 8)))
    return Image.fromarray(np.round(repeated * (255 / 16)).astype(np.uint8))


def main() -> None:
    """Write train/ and val/ below the folder named on the command line."""
    parser = script_parser(__doc__)
    parser.add_argument("folder", help="where to make train/ and val/")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    write_digits(arguments.folder)


if __name__ == "__main__":
    run_main(main)
