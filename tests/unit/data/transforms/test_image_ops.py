"""Each operation of RandAugment does what Pillow does, with fixed arguments on a photograph."""

from __future__ import annotations

from typing import Callable

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_image

from focal.config.rand_augment_policy import parse_policy
from focal.data.transforms import image_ops
from focal.data.transforms.rand_augment import INCREASING_OPERATIONS, OPERATIONS, DrawnOperation, RandAugment

FILL = (124, 116, 104)
BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC
MAGNITUDES = (0.5, 5.0, 9.0, 10.0)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """A photograph of 203 x 161 pixels: primes, so that no shift ends on a pixel's edge, where rounding decides."""
    return Image.fromarray(load_sample_image("china.jpg")[100:261, 50:253])


def _apply(
    image: Image.Image, name: str, magnitude: float, sign: int, resample: Image.Resampling = BICUBIC
) -> np.ndarray:
    augment = RandAugment(
        parse_policy(f"rand-inc{int(name in INCREASING_OPERATIONS)}"), "bicubic", (0.485, 0.456, 0.406)
    )
    return np.asarray(augment.apply(image, [DrawnOperation(name, magnitude, sign, resample)])).astype(int)


def _affine(image: Image.Image, matrix: tuple[float, ...], resample: Image.Resampling) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=resample, fillcolor=FILL)


# name -> (magnitude, sign) -> Pillow's result; the level formulas are written out again from timm's description.
GEOMETRIC: dict[str, Callable[..., Image.Image]] = {
    "Rotate": lambda image, m, s, r: image.rotate(s * 3 * m, resample=r, fillcolor=FILL),
    "ShearX": lambda image, m, s, r: _affine(image, (1, s * 0.03 * m, 0, 0, 1, 0), r),
    "ShearY": lambda image, m, s, r: _affine(image, (1, 0, 0, s * 0.03 * m, 1, 0), r),
    "TranslateXRel": lambda image, m, s, r: _affine(image, (1, 0, s * 0.045 * m * image.width, 0, 1, 0), r),
    "TranslateYRel": lambda image, m, s, r: _affine(image, (1, 0, 0, 0, 1, s * 0.045 * m * image.height), r),
}


def _per_pixel(function: Callable[[np.ndarray], np.ndarray]) -> Callable[..., Image.Image]:
    return lambda image: Image.fromarray(function(np.asarray(image).astype(int)).astype(np.uint8))


def _keep_bits(image: Image.Image, bits: int) -> Image.Image:
    return _per_pixel(lambda pixels: pixels // 2 ** (8 - bits) * 2 ** (8 - bits))(image)


def _saturating_add(image: Image.Image, add: int) -> Image.Image:
    return _per_pixel(lambda pixels: np.where(pixels < 128, np.minimum(pixels + add, 255), pixels))(image)


EXACT: dict[str, Callable[..., Image.Image]] = {
    "AutoContrast": lambda image, m, s: ImageOps.autocontrast(image),
    "Equalize": lambda image, m, s: ImageOps.equalize(image),
    "Invert": lambda image, m, s: ImageChops.invert(image),
    "Posterize": lambda image, m, s: _keep_bits(image, int(m * 0.4)),
    "PosterizeIncreasing": lambda image, m, s: _keep_bits(image, 4 - int(m * 0.4)),
    "Solarize": lambda image, m, s: ImageOps.solarize(image, min(256, int(m * 25.6))),
    "SolarizeIncreasing": lambda image, m, s: ImageOps.solarize(image, 256 - min(256, int(m * 25.6))),
    "SolarizeAdd": lambda image, m, s: _saturating_add(image, min(128, int(m * 11))),
}
for _name in ("Color", "Contrast", "Brightness", "Sharpness"):
    _enhance = getattr(ImageEnhance, _name)
    EXACT[_name] = lambda image, m, s, enhance=_enhance: enhance(image).enhance(0.18 * m + 0.1)
    EXACT[_name + "Increasing"] = lambda image, m, s, enhance=_enhance: enhance(image).enhance(
        max(0.1, 1 + s * 0.09 * m)
    )


def test_both_sets_hold_fifteen_operations_which_are_all_compared_below() -> None:
    assert len(OPERATIONS) == len(INCREASING_OPERATIONS) == 15
    assert set(OPERATIONS) | set(INCREASING_OPERATIONS) == set(EXACT) | set(GEOMETRIC)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("sign", (1, -1))
def test_colour_operations_equal_pillow(photo: Image.Image, name: str, sign: int) -> None:
    for magnitude in MAGNITUDES:
        expected = np.asarray(EXACT[name](photo, magnitude, sign)).astype(int)
        # Enhancement factors may differ in the last bit of a float, hence by 1 where a product meets an integer.
        difference = np.abs(_apply(photo, name, magnitude, sign) - expected)
        assert difference.max() <= (1 if "Enhance" in repr(EXACT[name].__defaults__) else 0)
        assert difference.mean() < 1e-3


@pytest.mark.parametrize("resample", (BILINEAR, BICUBIC))
@pytest.mark.parametrize("sign", (1, -1))
@pytest.mark.parametrize("name", GEOMETRIC)
def test_geometric_operations_equal_pillow_to_one_level(
    photo: Image.Image, name: str, sign: int, resample: Image.Resampling
) -> None:
    for magnitude in MAGNITUDES:
        expected = np.asarray(GEOMETRIC[name](photo, magnitude, sign, resample)).astype(int)
        difference = np.abs(_apply(photo, name, magnitude, sign, resample) - expected)
        # Well within the 2 of 255 that the recipe allows; single instead of double precision before truncation.
        assert difference.mean() < 0.1, f"magnitude {magnitude}"
        assert difference.max() <= 1, f"magnitude {magnitude}"


def test_translation_beyond_the_image_leaves_only_the_fill_colour(photo: Image.Image) -> None:
    moved = np.asarray(image_ops.translate_x(photo, 1.5, BICUBIC, FILL))
    assert (moved == FILL).all()


def test_posterize_to_no_bits_is_black(photo: Image.Image) -> None:
    assert not np.asarray(image_ops.posterize(photo, 0)).any()
    assert image_ops.posterize(photo, 8) is photo
