"""Operations of RandAugment on 8-bit RGB Pillow images that Pillow does not have. Nothing here is random.

Shear and translation shift each row (or column) by some offset, so a one-dimensional interpolation is enough. In NumPy
this is quicker than Pillow's general affine transform, whose taps, weights, borders and truncation it repeats.
"""

from __future__ import annotations

from typing import Callable

import numpy as np
from PIL import Image

Colour = tuple[int, int, int]

# Rows that are shifted at a time: few enough for the intermediate arrays to stay in the processor's cache.
_ROWS = 28
_CHANNELS = 3


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
    return _shift_rows(image, np.array([fraction * image.width]), resample, fill)


def translate_y(image: Image.Image, fraction: float, resample: Image.Resampling, fill: Colour) -> Image.Image:
    """Output (x, y) shows input (x, y + fraction * height)."""
    return _transposed(translate_x, image, fraction, resample, fill)


def _transposed(
    operation: Callable[..., Image.Image], image: Image.Image, value: float, resample: Image.Resampling, fill: Colour
) -> Image.Image:
    turned = operation(image.transpose(Image.Transpose.TRANSPOSE), value, resample, fill)
    return turned.transpose(Image.Transpose.TRANSPOSE)


def _shift_rows(image: Image.Image, shift_H: np.ndarray, resample: Image.Resampling, fill: Colour) -> Image.Image:
    """Output (x, y) shows input (x + shift_H[y], y), interpolated along x; beyond the image it shows `fill`.

    If all rows are shifted alike, one entry of `shift_H` is enough.
    """
    width, height = image.size
    # A row that is shifted by more than its width has left the image, however far it went.
    shift_H = np.clip(shift_H, -width - 1, width + 1)
    whole_H = np.floor(shift_H).astype(np.int64)
    weights = _tap_weights((shift_H - whole_H).astype(np.float32), resample)

    # Position j of a row lies between pixels j and j + 1, so that output x shows position x + whole_H. Those from -1 to
    # width - 1 show the image; `left` and `right` say how far outputs reach beyond.
    left, right = max(-int(whole_H.min()), 1), max(int(whole_H.max()), 1)
    positions = np.empty((height, left + width + right, _CHANNELS), dtype=np.uint8)
    positions.reshape(height, -1)[:] = np.tile(np.array(fill, np.uint8), left + width + right)
    _interpolate_rows(np.asarray(image), weights, positions[:, left - 1 : left + width])
    # Of the outermost two, a row shows the one that is no further than half a pixel from the centre of a pixel.
    first_H, end_H = np.ceil(-0.5 - shift_H), np.ceil(width - 0.5 - shift_H)
    for position, shown_H in ((-1, first_H <= -1 - whole_H), (width - 1, width - 1 - whole_H < end_H)):
        pixels_HC = positions[:, left + position]
        pixels_HC[:] = np.where(shown_H[:, None], pixels_HC, np.array(fill, np.uint8))

    windows = _windows(positions.reshape(height, -1), width * _CHANNELS)
    moved = windows[np.arange(height), (left + whole_H) * _CHANNELS]
    return Image.frombytes("RGB", image.size, moved)


def _interpolate_rows(pixels_HWC: np.ndarray, weights: np.ndarray, out: np.ndarray) -> None:
    """Write positions -1 .. W - 1 of each row into `out`, uint8 (H, W + 1, 3); edge pixels are repeated on both sides.

    Args:
        pixels_HWC: uint8.
        weights: float32, (taps, H, 1), or (taps, 1, 1) if they are the same for all rows.
    """
    height, width, channels = pixels_HWC.shape
    taps, count = len(weights), min(_ROWS, height)
    weights = np.broadcast_to(weights, (taps, height, 1))
    # NumPy is twice as fast on contiguous arrays. So the pixels repeated at the ends of rows are multiplied too, and a
    # tap is an offset into all rows at once; the last row then reads a few zeros behind its end.
    row = (width + taps) * channels
    source = np.zeros(count * row + taps * channels, dtype=np.float32)
    values = [source[tap * channels :][: count * row].reshape(count, row) for tap in range(taps)]
    padded = values[0].reshape(count, width + taps, channels)
    # Two arrays: additions between two halves of one array took four times as long.
    total, product = np.empty((count, row), np.float32), np.empty((count, row), np.float32)
    side = taps // 2
    for top in range(0, height, _ROWS):
        count = min(_ROWS, height - top)
        rows = slice(top, top + count)
        padded[:count, side : side + width] = pixels_HWC[rows]
        padded[:count, :side] = pixels_HWC[rows, :1]
        padded[:count, side + width :] = pixels_HWC[rows, -1:]
        np.multiply(weights[0, rows], values[0][:count], out=total[:count])
        for tap in range(1, taps):
            np.multiply(weights[tap, rows], values[tap][:count], out=product[:count])
            total[:count] += product[:count]
        whole = np.clip(total[:count].astype(np.int16), 0, 255)  # truncated, as in Pillow
        out[rows] = whole.reshape(count, -1, channels)[:, : width + 1]


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
