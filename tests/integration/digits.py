"""Scikit-learn's real handwritten digits as an image folder, for jobs of a few steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def write_digits(folder: Path, train: int, val: int, classes: int = 4, size: int = 32) -> Path:
    """Write `train` and `val` images of the first `classes` digits as PNG, `size` pixels a side; returns `folder`."""
    digits = load_digits()
    chosen = np.flatnonzero(digits.target < classes)[: train + val]
    assert len(chosen) == train + val
    for number, index in enumerate(chosen):
        split = "train" if number < train else "val"
        place = folder / split / str(digits.target[index])
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.kron(digits.images[index] * (255 / 16), np.ones((size // 8, size // 8)))
        Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number:04d}.png")
    return folder
