"""Synthetic pictures, for machines without a dataset: noise that is smooth enough to be a JPEG of usual size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = 4


def write_pictures(folder: Path, count: int, size: tuple[int, int], held_out: int = 16) -> None:
    """Write `folder`/train and `folder`/val with pictures of four classes; nothing if they are there.

    Args:
        folder: may exist.
        count: of pictures for training.
        size: width and height in pixels.
        held_out: pictures for evaluation.
    """
    if (folder / "val").is_dir():
        return
    rng = np.random.default_rng(0)
    for split, pictures in (("train", count), ("val", held_out)):
        for number in range(pictures):
            name = f"class_{number % CLASSES}"
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            coarse = rng.integers(0, 256, (size[1] // 8 + 1, size[0] // 8 + 1, 3), dtype=np.uint8)
            coarse[..., number % 3] //= 1 + number % CLASSES  # classes differ in colour
            Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(
                folder / split / name / f"{number:04d}.jpg", quality=90
            )
