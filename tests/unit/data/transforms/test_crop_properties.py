"""Crops lie inside the image, whatever its shape and the settings."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from focal.data.sampler import SAMPLE, generator
from focal.data.transforms.crop import draw_crop, eval_crop, eval_resize

SIDES = st.integers(1, 100) | st.integers(1, 100_000)
RANGE = st.tuples(st.floats(1e-4, 1), st.floats(1e-4, 1)).map(sorted)
ASPECT = st.tuples(st.floats(1e-2, 100), st.floats(1e-2, 100)).map(sorted)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(width=SIDES, height=SIDES, scale=RANGE, aspect=ASPECT, seed=st.integers(0, 1000))
def test_a_training_crop_is_inside_the_image_and_not_empty(
    width: int, height: int, scale: list[float], aspect: list[float], seed: int
) -> None:
    box = draw_crop(width, height, (scale[0], scale[1]), (aspect[0], aspect[1]), generator(seed, 0, 0, SAMPLE))
    left, top, right, bottom = box
    assert 0 <= left < right <= width and 0 <= top < bottom <= height


@settings(max_examples=300, deadline=None, derandomize=True)
@given(width=SIDES, height=SIDES, image_hw=st.tuples(*[st.integers(1, 700)] * 2), crop_ratio=st.floats(0.05, 1))
def test_an_image_is_resized_to_cover_the_evaluation_crop(
    width: int, height: int, image_hw: tuple[int, int], crop_ratio: float
) -> None:
    scaled = eval_resize((width, height), image_hw, crop_ratio)
    assert scaled[0] >= image_hw[1] and scaled[1] >= image_hw[0]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    long=st.integers(60, 60_000),
    short=st.integers(1, 3),
    tall=st.booleans(),
    image_hw=st.tuples(*[st.integers(1, 64)] * 2),
    crop_ratio=st.floats(0.5, 1) | st.just(1.0),
)
def test_an_evaluation_crop_of_an_extreme_shape_is_inside_the_image(
    long: int, short: int, tall: bool, image_hw: tuple[int, int], crop_ratio: float
) -> None:
    """Of a red image it is red: no black from outside."""
    image = Image.new("RGB", (short, long) if tall else (long, short), (200, 0, 0))
    crop = eval_crop(image, image_hw, crop_ratio, Image.Resampling.BICUBIC)
    assert crop.size == (image_hw[1], image_hw[0]) and crop.getcolors() == [(image_hw[0] * image_hw[1], (200, 0, 0))]
