"""Normalisation of pixels by the mean and standard deviation of each channel."""

from __future__ import annotations

import numpy as np

from focal.config.schema import DataConfig


def scale_and_shift(data: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """Float32 (3, 1, 1) each: pixel * scale + shift is (pixel / 255 - mean) / std."""
    mean, std = (np.array(values, dtype=np.float64)[:, None, None] for values in (data.image_mean, data.image_std))
    return (1.0 / (255.0 * std)).astype(np.float32), (-mean / std).astype(np.float32)


def normalize(pixels: np.ndarray, data: DataConfig) -> np.ndarray:
    """Pixels uint8 (..., 3, H, W) -> float32, normalised."""
    scale, shift = scale_and_shift(data)
    return pixels * scale + shift
