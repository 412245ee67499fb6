"""Normalising, erasing and mixing in float32 NumPy, one image at a time: the reference for what the device computes."""

from __future__ import annotations

import numpy as np

from focal.config.schema import DataConfig
from focal.data.transforms.boxes import Box
from focal.data.transforms.mixup import Mix


def normalize(pixels: np.ndarray, data: DataConfig) -> np.ndarray:
    """Pixels (..., 3, H, W) -> float32 (pixel / 255 - mean) / std."""
    mean, std = (np.array(values)[:, None, None] for values in (data.image_mean, data.image_std))
    return ((pixels / 255 - mean) / std).astype(np.float32)


def erase(image: np.ndarray, rectangles: list[Box], mode: str, rng: np.random.Generator) -> None:
    """Fill rectangles of a normalised image (C, H, W) with unrounded values, in place."""
    channels = image.shape[0]
    for top, left, bottom, right in rectangles:
        erased = image[:, top:bottom, left:right]
        if mode == "pixel":
            erased[:] = rng.standard_normal(erased.shape, dtype=np.float32)
        elif mode == "rand":
            erased[:] = rng.standard_normal((channels, 1, 1), dtype=np.float32)
        else:
            erased[:] = 0


def mix_images(images: np.ndarray, mix: Mix) -> np.ndarray:
    """The definition of Mixup and CutMix, image by image from untouched sources."""
    out = images.copy()
    for i, (lam, box) in enumerate(zip(mix.lam, mix.boxes)):
        partner = images[len(images) - 1 - i]
        if box is None:
            out[i] = lam * images[i] + (1 - lam) * partner
        else:
            top, left, bottom, right = box
            out[i, :, top:bottom, left:right] = partner[:, top:bottom, left:right]
    return out
