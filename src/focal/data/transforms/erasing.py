"""Random erasing (Zhong et al. 2017), with timm's meaning of the settings.

Erased areas hold normalised values, which 8-bit pixels cannot express. So there a byte is not a pixel but a code: a
code c stands for (c - 128) / 32, which reaches from -4 to 3.97 standard deviations in steps of 1 / 32. Noise beyond
that, 7 in 100,000 numbers, is clipped.
"""

from __future__ import annotations

import math

import numpy as np

from focal.data.transforms.boxes import Box

_AREA = (0.02, 1 / 3)  # fraction of the image, before division by the number of rectangles
_ASPECT = (0.3, 1 / 0.3)  # ratio of height to width, uniform in the logarithm
_ATTEMPTS = 10

CODE_OF_ZERO = 128
CODES_PER_UNIT = 32


def draw_erasures(height: int, width: int, prob: float, count: int, rng: np.random.Generator) -> list[Box]:
    """Draw the rectangles (top, left, bottom, right) to erase.

    Args:
        height, width: of the image, in pixels.
        prob: probability that there are any.
        count: their number is uniform in 1 .. count, and the area of each is divided by it.
        rng: source of the numbers.
    """
    if rng.random() >= prob:
        return []
    number = int(rng.integers(1, count + 1)) if count > 1 else 1
    rectangles = []
    for _ in range(number):
        for _ in range(_ATTEMPTS):
            area = rng.uniform(*_AREA) * height * width / number
            aspect = math.exp(rng.uniform(math.log(_ASPECT[0]), math.log(_ASPECT[1])))
            rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if columns < width and rows < height:
                top = int(rng.integers(0, height - rows + 1))
                left = int(rng.integers(0, width - columns + 1))
                rectangles.append((top, left, top + rows, left + columns))
                break
    return rectangles


def erase(image: np.ndarray, rectangles: list[Box], mode: str, rng: np.random.Generator) -> None:
    """Fill rectangles of `image`, uint8 (C, H, W), with codes, in place.

    Args:
        mode: const fills with zeros, the mean colour; rand with one normally distributed colour per rectangle; pixel
            with normally distributed noise.
    """
    channels = image.shape[0]
    for top, left, bottom, right in rectangles:
        erased = image[:, top:bottom, left:right]
        if mode == "pixel":
            erased[:] = _codes(rng.standard_normal(erased.shape, dtype=np.float32))
        elif mode == "rand":
            erased[:] = _codes(rng.standard_normal((channels, 1, 1), dtype=np.float32))
        else:
            erased[:] = CODE_OF_ZERO


def _codes(values: np.ndarray) -> np.ndarray:
    """The codes, int16, that come closest to normalised values; `values` is overwritten."""
    values *= CODES_PER_UNIT
    values += CODE_OF_ZERO
    return np.clip(np.rint(values, out=values).astype(np.int16), 0, 255)
