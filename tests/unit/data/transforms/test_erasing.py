"""Random erasing: how often, how much of the image, and what it is filled with."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from focal.data.sampler import SAMPLE, generator
from focal.data.transforms.erasing import CODE_OF_ZERO, CODES_PER_UNIT, draw_erasures, erase


def _draw(prob: float, count: int = 1, images: int = 2000) -> list[list[tuple[int, int, int, int]]]:
    return [draw_erasures(224, 224, prob, count, generator(0, 0, index, SAMPLE)) for index in range(images)]


def test_fraction_of_erased_images_is_the_probability() -> None:
    erased = sum(bool(rectangles) for rectangles in _draw(0.25))
    assert stats.binomtest(erased, 2000, 0.25).pvalue > 1e-3
    assert not any(_draw(0.0))


def test_area_is_uniform_and_aspect_log_uniform() -> None:
    top, left, bottom, right = np.array([rectangles[0] for rectangles in _draw(1.0)]).T
    rows, columns = bottom - top, right - left
    assert (top >= 0).all() and (left >= 0).all() and (bottom <= 224).all() and (right <= 224).all()
    assert stats.kstest(rows * columns / 224**2, stats.uniform(0.02, 1 / 3 - 0.02).cdf).pvalue > 1e-3
    assert 0.28 < (rows / columns).min() < 0.33 and 3.0 < (rows / columns).max() < 3.5
    # Large, elongated ones do not fit and are drawn again, so the aspect is log-uniform among small ones only.
    small = rows * columns < 0.25 * 224**2
    span = 2 * np.log(1 / 0.3)
    assert stats.kstest(np.log(rows / columns)[small], stats.uniform(-span / 2, span).cdf).pvalue > 1e-3


def test_several_rectangles_share_the_area() -> None:
    drawn = _draw(1.0, count=3)
    numbers = np.bincount([len(rectangles) for rectangles in drawn])
    assert numbers[0] == 0 and stats.chisquare(numbers[1:]).pvalue > 1e-3
    for rectangles in drawn:
        for top, left, bottom, right in rectangles:
            assert (bottom - top) * (right - left) <= 224**2 / 3 / len(rectangles) * 1.05


def _values(codes: np.ndarray) -> np.ndarray:
    """What codes stand for."""
    return (codes.astype(np.float64) - CODE_OF_ZERO) / CODES_PER_UNIT


def _spread(codes: np.ndarray) -> np.ndarray:
    """The same, spread evenly over the numbers that are rounded to each code, to compare with a distribution."""
    return _values(codes) + np.random.default_rng(0).uniform(-0.5, 0.5, codes.shape) / CODES_PER_UNIT


def test_noise_beyond_the_codes_is_clipped() -> None:
    class Extreme(np.random.Generator):
        def standard_normal(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
            return np.array([-9.0, 0.0, 9.0], dtype)[:, None, None] * np.ones(shape, dtype)

    image = np.zeros((3, 2, 2), dtype=np.uint8)
    erase(image, [(0, 0, 2, 2)], "pixel", Extreme(np.random.PCG64(0)))
    assert image[:, 0, 0].tolist() == [0, 128, 255] and _values(image[:, 0, 0]).tolist() == [-4.0, 0.0, 3.96875]


@pytest.mark.parametrize("mode", ("const", "rand", "pixel"))
def test_each_mode_fills_only_the_rectangle_with_its_values(mode: str) -> None:
    image = np.full((3, 224, 224), 9, dtype=np.uint8)
    erase(image, [(20, 40, 120, 200)], mode, generator(0, 0, 0, SAMPLE))
    codes = image[:, 20:120, 40:200]
    inside = _values(codes)
    outside = np.ones((224, 224), dtype=bool)
    outside[20:120, 40:200] = False
    assert (image[:, outside] == 9).all()
    if mode == "const":
        assert not inside.any()
    elif mode == "rand":
        assert (inside == inside[:, :1, :1]).all()
        assert len(np.unique(inside)) == 3
    else:
        assert stats.kstest(_spread(codes).ravel(), stats.norm.cdf).pvalue > 1e-3
        # Five standard deviations of mean and variance; rounding raises the latter by a twelfth of a step squared.
        assert abs(inside.mean()) < 5 / np.sqrt(inside.size)
        assert abs(inside.var() - (1 + CODES_PER_UNIT**-2 / 12)) < 5 * np.sqrt(2 / inside.size)


def test_random_colour_is_standard_normal() -> None:
    colours = []
    for index in range(500):
        image = np.zeros((3, 8, 8), dtype=np.uint8)
        erase(image, [(1, 1, 3, 3)], "rand", generator(0, 0, index, SAMPLE))
        colours.extend(image[:, 1, 1])
    assert stats.kstest(_spread(np.array(colours)), stats.norm.cdf).pvalue > 1e-3
