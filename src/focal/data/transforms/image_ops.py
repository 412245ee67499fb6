"""Operations of RandAugment on 8-bit RGB Pillow images that Pillow does not have. Nothing here is random.

Shear and translation shift each row (or column) by some offset, so a one-dimensional interpolation is enough. In NumPy
this takes a third of the time of Pillow's general affine transform, whose taps, weights, borders and truncation it
repeats.
"""

from __future__ import annotations

from typing import Callable

import numpy as np
from PIL import Image

Colour = tuple[int, int, int]

# Rows that are shifted at a time: few enough for the intermediate arrays to stay in the processor's cache.
_ROWS = 56


def posterize(image: Image.Image, bits: int) -> Image.Image:
    """Keep the upper `bits` bits, 0..8; 0 gives black, which Pillow's own function refuses since version 12."""
    if bits >= 8:
        return image
    kept = 0xFF & ~(2 ** (8 - bits) - 1)
    return image.point([value & kept for value in range(256)] * 3)


def solarize_add(image: Image.Image, add: int) -> Image.Image:
    """Add to the pixels below 128, up to 255."""
    return image.point([min(255, value + add) if value < 128 else value for value in range(256)] * 3)


def rotate(image: Image.Image, degrees: float, resample: Image.Resampling, fill: Colour) -> Image.Image:
    """Rotate counter-clockwise about the centre, without changing the size."""
    return image.rotate(degrees, resample=resample, fillcolor=fill)


def shear_x(image: Image.Image, factor: float, resample: Image.Resampling, fill: Colour) -> Image.Image:
    """Output (x, y) shows input (x + factor * y, y)."""
    return _shift_rows(image, factor * (np.arange(image.height) + 0.5), resample, fill)


def shear_y(image: Image.Image, factor: float, resample: Image.Resampling, fill: Colour) -> Image.Image:
    """Output (x, y) shows input (x, y + factor * x)."""
    return _transposed(shear_x, image, factor, resample, fill)


def translate_x(image: Image.Image, fraction: float, resample: Image.Resampling, fill: Colour) -> Image.Image:
    """Output (x, y) shows input (x + fraction * width, y)."""
    return _shift_rows(image, np.full(image.height, fraction * image.width), resample, fill)


def translate_y(image: Image.Image, fraction: float, resample: Image.Resampling, fill: Colour) -> Image.Image:
    """Output (x, y) shows input (x, y + fraction * height)."""
    return _transposed(translate_x, image, fraction, resample, fill)


def _transposed(
    operation: Callable[..., Image.Image], image: Image.Image, value: float, resample: Image.Resampling, fill: Colour
) -> Image.Image:
    turned = operation(image.transpose(Image.Transpose.TRANSPOSE), value, resample, fill)
    return turned.transpose(Image.Transpose.TRANSPOSE)


def _shift_rows(image: Image.Image, shift_H: np.ndarray, resample: Image.Resampling, fill: Colour) -> Image.Image:
    """Output (x, y) shows input (x + shift_H[y], y), interpolated along x; beyond the image it shows `fill`."""
    pixels_HWC = np.asarray(image)
    height, width, channels = pixels_HWC.shape
    # A row that is shifted by more than its width has left the image, however far it went.
    shift_H = np.clip(shift_H, -width - 1, width + 1)
    whole_H = np.floor(shift_H).astype(np.int64)
    weights = _tap_weights((shift_H - whole_H).astype(np.float32), resample)

    # Repeat the edge pixels on both sides, so that one slice per row holds the taps of all its outputs.
    taps = len(weights)
    left, right = max(-int(whole_H.min()), 0) + taps, max(int(whole_H.max()), 0) + taps
    padded = np.empty((height, left + width + right, channels), dtype=np.uint8)
    padded[:, left : left + width] = pixels_HWC
    padded[:, :left] = pixels_HWC[:, :1]
    padded[:, left + width :] = pixels_HWC[:, -1:]
    windows = _windows(padded.reshape(height, -1), (width + taps - 1) * channels)
    starts_H = (whole_H + left + 1 - taps // 2) * channels

    moved = np.empty((height, width * channels), dtype=np.uint8)
    for top in range(0, height, _ROWS):
        rows = slice(top, min(top + _ROWS, height))
        values = windows[np.arange(rows.start, rows.stop), starts_H[rows]].astype(np.float32)
        total = weights[0, rows] * values[:, : width * channels]
        product = np.empty_like(total)
        for tap in range(1, taps):
            start = tap * channels
            np.multiply(weights[tap, rows], values[:, start : start + width * channels], out=product)
            total += product
        moved[rows] = np.clip(total, 0, 255, out=total)  # truncates, as Pillow does
    moved = moved.reshape(pixels_HWC.shape)

    column = np.arange(width)
    first_H, end_H = np.ceil(-0.5 - shift_H), np.ceil(width - 0.5 - shift_H)
    moved[(column < first_H[:, None]) | (column >= end_H[:, None])] = fill
    return Image.fromarray(moved)


def _windows(rows: np.ndarray, span: int) -> np.ndarray:
    """View (H, starts, span) of all slices of `span` entries in each row of contiguous `rows` (H, N)."""
    height, length = rows.shape
    shape, strides = (height, length - span + 1, span), (*rows.strides, rows.strides[1])
    return np.lib.stride_tricks.as_strided(rows, shape, strides, writeable=False)


def _tap_weights(fraction_H: np.ndarray, resample: Image.Resampling) -> np.ndarray:
    """Weights float32 (taps, H, 1) of consecutive pixels; Pillow's transform uses the cubic with a = -1 (not -0.5)."""
    d = fraction_H[:, None]
    if resample == Image.Resampling.BILINEAR:
        return np.stack([1 - d, d])
    square, cube = d * d, d * d * d
    return np.stack([-d + 2 * square - cube, 1 - 2 * square + cube, d + square - cube, cube - square])
