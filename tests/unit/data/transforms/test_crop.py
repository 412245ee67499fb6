"""The random crop follows its distribution; the pixels of both crops equal those of direct calls to Pillow."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from sklearn.datasets import load_sample_image

from focal.data.sampler import SAMPLE, generator
from focal.data.transforms import crop
from focal.data.transforms.crop import draw_crop, draw_interpolation, eval_crop, eval_resize, resized_crop

SCALE, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)
BICUBIC = Image.Resampling.BICUBIC


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(load_sample_image("flower.jpg"))  # 640 x 427


def _boxes(width: int, height: int, count: int = 3000) -> np.ndarray:
    return np.array([draw_crop(width, height, SCALE, ASPECT, generator(0, 0, i, SAMPLE)) for i in range(count)])


def test_boxes_fit_and_have_area_and_aspect_in_range() -> None:
    left, top, right, bottom = _boxes(500, 375).T
    assert (left >= 0).all() and (top >= 0).all() and (right <= 500).all() and (bottom <= 375).all()
    area, aspect = (right - left) * (bottom - top) / (500 * 375), (right - left) / (bottom - top)
    # Rounding to whole pixels moves both a little beyond their range.
    assert area.min() > 0.078 and area.max() <= 1.0
    assert aspect.min() > 0.74 and aspect.max() < 1.35


def test_area_and_logarithm_of_aspect_are_uniform_where_all_boxes_fit() -> None:
    # Areas up to half of a square always fit, so no attempt is refused and every draw is seen.
    boxes = np.array([draw_crop(1000, 1000, (0.1, 0.5), ASPECT, generator(1, 0, i, SAMPLE)) for i in range(3000)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert stats.kstest(width * height / 1e6, stats.uniform(0.1, 0.4).cdf).pvalue > 1e-3
    log_range = math.log(4 / 3) - math.log(3 / 4)
    assert stats.kstest(np.log(width / height), stats.uniform(math.log(3 / 4), log_range).cdf).pvalue > 1e-3
    # The position is uniform among those where the box fits; +0.5 spreads whole pixels evenly.
    place = (boxes[:, 0] + 0.5) / (1000 - width + 1)
    assert stats.kstest(place, stats.uniform().cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    ("size", "box"),
    [((1000, 50), (466, 0, 533, 50)), ((50, 1000), (0, 466, 50, 533)), ((40, 40), (0, 0, 40, 40))],
)
def test_centre_box_is_used_after_ten_failed_attempts(size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    # An area of 1.0 never fits with another aspect than the image's.
    found = {draw_crop(*size, (1.0, 1.0), (0.75, 4 / 3) if size[0] != size[1] else (0.9, 0.95), generator(0, 0, i, 1))
             for i in range(20)}  # fmt: skip
    if size[0] == size[1]:
        # Aspect below the whole image's: the height stays, the width shrinks to the largest allowed.
        assert found == {(1, 0, 39, 40)}
    else:
        assert found == {box}


def test_resized_crop_is_crop_then_resize(photo: Image.Image) -> None:
    box = (10, 20, 310, 220)
    expected = photo.crop(box).resize((48, 32), BICUBIC)
    assert resized_crop(photo, box, (32, 48), BICUBIC).tobytes() == expected.tobytes()


def test_random_interpolation_picks_both_filters_equally_often() -> None:
    bicubic = sum(draw_interpolation("random", generator(0, 0, i, SAMPLE)) == BICUBIC for i in range(2000))
    assert stats.binomtest(bicubic, 2000, 0.5).pvalue > 1e-3
    assert draw_interpolation("bilinear", generator(0, 0, 0, SAMPLE)) == Image.Resampling.BILINEAR


def _torchvision_reference(image: Image.Image, side: int, crop_ratio: float) -> Image.Image:
    """Resize(int(side / crop_ratio)) and CenterCrop(side) as torchvision's documentation describes them."""
    short = int(math.floor(side / crop_ratio))
    width, height = image.size
    if width <= height:
        size = (short, int(short * height / width))
    else:
        size = (int(short * width / height), short)
    image = image.resize(size, BICUBIC)
    left, top = int(round((size[0] - side) / 2.0)), int(round((size[1] - side) / 2.0))
    return image.crop((left, top, left + side, top + side))


@pytest.mark.parametrize("size", [(640, 427), (427, 640), (333, 500), (301, 303), (30, 50), (256, 256)])
@pytest.mark.parametrize(("side", "crop_ratio"), [(224, 0.875), (96, 0.9), (64, 1.0)])
def test_eval_crop_equals_torchvision(photo: Image.Image, size: tuple[int, int], side: int, crop_ratio: float) -> None:
    image = photo.resize(size)
    expected = _torchvision_reference(image, side, crop_ratio)
    found = eval_crop(image, (side, side), crop_ratio, BICUBIC)
    assert found.size == (side, side)
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("size", [(6, 600), (600, 6), (6, 301)])
@pytest.mark.parametrize("image_hw", [(64, 64), (48, 64)])
def test_eval_crop_of_an_extreme_shape_shows_what_the_whole_would(
    photo: Image.Image, size: tuple[int, int], image_hw: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to two of 255, from the float32 box and the order of the directions."""
    image = photo.resize(size, BICUBIC)
    found = np.asarray(eval_crop(image, image_hw, 0.875, BICUBIC)).astype(int)
    monkeypatch.setattr(crop, "_LONGEST_RESIZED", 10**6)
    expected = np.asarray(eval_crop(image, image_hw, 0.875, BICUBIC))
    assert found.shape == (*image_hw, 3)
    assert np.abs(found - expected).max() <= 2 and np.abs(found - expected).mean() < 0.3


@pytest.mark.parametrize("size", [(640, 427), (427, 640), (100, 900), (64, 64)])
def test_eval_crop_of_other_shapes_lies_inside_the_resized_image(photo: Image.Image, size: tuple[int, int]) -> None:
    height, width = 64, 128
    resized = eval_resize(size, (height, width), 0.8)
    # Both sides are covered, one of them exactly, and proportions stay.
    assert resized[0] >= 160 and resized[1] >= 80
    assert resized[0] == 160 or resized[1] == 80
    assert resized[0] / resized[1] == pytest.approx(size[0] / size[1], rel=0.02)
    assert eval_crop(photo.resize(size), (height, width), 0.8, BICUBIC).size == (width, height)
