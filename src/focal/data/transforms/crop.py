"""The random resized crop of training, and the resize and centre crop of evaluation."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_ATTEMPTS = 10
_LONGEST_RESIZED = 50  # times the shorter side: up to here the whole image is resized before the centre crop


def draw_interpolation(interpolation: str, rng: np.random.Generator) -> Image.Resampling:
    """Pillow's filter for the config value; `random` picks bilinear or bicubic evenly."""
    if interpolation == "random":
        return INTERPOLATIONS["bilinear" if rng.random() < 0.5 else "bicubic"]
    return INTERPOLATIONS[interpolation]


def draw_crop(
    width: int, height: int, scale: tuple[float, ...], aspect: tuple[float, ...], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw a box (left, top, right, bottom) as for the Inception networks and in timm.

    Ten attempts are made to draw a box that fits; then it is the largest centred box with an aspect in the range.

    Args:
        width, height: of the image, in pixels.
        scale: lowest and highest fraction of the image's area; uniform.
        aspect: lowest and highest ratio of width to height; uniform in the logarithm.
    """
    area = width * height
    for _ in range(_ATTEMPTS):
        target_area = rng.uniform(scale[0], scale[1]) * area
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        box_width = round(math.sqrt(target_area * ratio))
        box_height = round(math.sqrt(target_area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            left = int(rng.integers(0, width - box_width + 1))
            top = int(rng.integers(0, height - box_height + 1))
            return left, top, left + box_width, top + box_height
    return _centre_box(width, height, aspect)


def _centre_box(width: int, height: int, aspect: tuple[float, ...]) -> tuple[int, int, int, int]:
    box_width, box_height = width, height
    if width / height < aspect[0]:
        box_height = max(1, min(height, round(width / aspect[0])))
    elif width / height > aspect[1]:
        box_width = max(1, min(width, round(height * aspect[1])))
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return left, top, left + box_width, top + box_height


def resized_crop(
    image: Image.Image, box: tuple[int, int, int, int], image_hw: tuple[int, int], resample: Image.Resampling
) -> Image.Image:
    """Crop, then resize to (height, width); as in timm, the filter sees no pixel outside the box."""
    return image.crop(box).resize((image_hw[1], image_hw[0]), resample)


def eval_crop(
    image: Image.Image, image_hw: tuple[int, int], crop_ratio: float, resample: Image.Resampling
) -> Image.Image:
    """Resize as `eval_resize` says, then crop the centre to (height, width).

    If the longer side is more than 50 times the shorter one, only the part that the crop shows is resized: the whole of
    1 x 60,000 pixels would take 16 GB. Values then differ slightly, because Pillow rounds the box to float32 and may
    resize the other direction first.
    """
    height, width = image_hw
    scaled = eval_resize(image.size, image_hw, crop_ratio)
    # As torchvision does, with Python's round, which rounds half to even.
    left = round((scaled[0] - width) / 2.0)
    top = round((scaled[1] - height) / 2.0)
    box = (left, top, left + width, top + height)
    if max(scaled) > _LONGEST_RESIZED * min(scaled):
        return _resized_part(image, scaled, box, resample)
    if image.size != scaled:
        image = image.resize(scaled, resample)
    return image.crop(box)


def _resized_part(
    image: Image.Image, scaled: tuple[int, int], box: tuple[int, int, int, int], resample: Image.Resampling
) -> Image.Image:
    """The part `box` of what `image` would be after a resize to `scaled` (width, height)."""
    scale_x, scale_y = image.width / scaled[0], image.height / scaled[1]
    left, top, right, bottom = box
    # Pillow refuses a box that rounding has moved out of the image.
    end_x, end_y = min(right * scale_x, image.width), min(bottom * scale_y, image.height)
    return image.resize((right - left, bottom - top), resample, box=(left * scale_x, top * scale_y, end_x, end_y))


def eval_resize(size: tuple[int, int], image_hw: tuple[int, int], crop_ratio: float) -> tuple[int, int]:
    """The (width, height) to which an image of `size` (width, height) is resized before the centre crop.

    The crop is then `crop_ratio` of the shorter side. Square crops follow torchvision: the shorter side becomes
    int(side / crop_ratio), the longer one is truncated. Others follow timm: the smallest scale that covers
    (height, width) / crop_ratio, with rounded sides.
    """
    target_height, target_width = (math.floor(side / crop_ratio) for side in image_hw)
    width, height = size
    if target_height == target_width:
        if width <= height:
            return target_width, int(target_width * height / width)
        return int(target_height * width / height), target_height
    ratio = min(width / target_width, height / target_height)
    return max(round(width / ratio), image_hw[1]), max(round(height / ratio), image_hw[0])
