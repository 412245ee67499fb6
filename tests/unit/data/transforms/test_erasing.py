"""Random erasing: how often, how much of the image, and what it is filled with."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from focal.data.sampler import SAMPLE, generator
from focal.data.transforms.erasing import draw_erasures, erase


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


@pytest.mark.parametrize("mode", ("const", "rand", "pixel"))
def test_each_mode_fills_only_the_rectangle_with_its_values(mode: str) -> None:
    image = np.full((3, 224, 224), 9.0, dtype=np.float32)
    erase(image, [(20, 40, 120, 200)], mode, generator(0, 0, 0, SAMPLE))
    inside = image[:, 20:120, 40:200]
    outside = np.ones((224, 224), dtype=bool)
    outside[20:120, 40:200] = False
    assert (image[:, outside] == 9.0).all()
    if mode == "const":
        assert not inside.any()
    elif mode == "rand":
        assert (inside == inside[:, :1, :1]).all()
        assert len(np.unique(inside)) == 3
    else:
        assert stats.kstest(inside.ravel(), stats.norm.cdf).pvalue > 1e-3


def test_random_colour_is_standard_normal() -> None:
    colours = []
    for index in range(500):
        image = np.zeros((3, 8, 8), dtype=np.float32)
        erase(image, [(1, 1, 3, 3)], "rand", generator(0, 0, index, SAMPLE))
        colours.extend(image[:, 1, 1])
    assert stats.kstest(colours, stats.norm.cdf).pvalue > 1e-3
