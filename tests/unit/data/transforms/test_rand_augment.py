"""Distributions of what RandAugment draws (with fixed seeds; p > 1e-3 expected)."""

from __future__ import annotations

import functools
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from focal.config.rand_augment_policy import parse_policy
from focal.data.sampler import SAMPLE, generator
from focal.data.transforms.color_jitter import color_jitter
from focal.data.transforms.rand_augment import INCREASING_OPERATIONS, DrawnOperation, RandAugment

MEAN = (0.485, 0.456, 0.406)
IMAGES = 3000


@functools.lru_cache
def _draw(text: str, images: int = IMAGES, interpolation: str = "bicubic") -> list[list[DrawnOperation]]:
    augment = RandAugment(parse_policy(text), interpolation, MEAN)
    return [augment.draw(generator(7, 3, index, SAMPLE)) for index in range(images)]


def _flat(drawn: list[list[DrawnOperation]]) -> list[DrawnOperation]:
    return [operation for image in drawn for operation in image]


def test_every_operation_is_chosen_equally_often() -> None:
    counts = Counter(operation.name for operation in _flat(_draw("rand-m9-mstd0.5-inc1")))
    assert set(counts) == set(INCREASING_OPERATIONS)
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


@pytest.mark.parametrize(("layers", "prob"), [(2, 0.5), (3, 0.2), (1, 1.0)])
def test_number_of_operations_is_binomial(layers: int, prob: float) -> None:
    counts = np.bincount([len(image) for image in _draw(f"rand-n{layers}-p{prob}-inc1")], minlength=layers + 1)
    expected = stats.binom.pmf(np.arange(layers + 1), layers, prob) * IMAGES
    if prob == 1.0:
        assert counts.tolist() == [0, IMAGES]
    else:
        assert stats.chisquare(counts, expected).pvalue > 1e-3


def test_magnitudes_are_normal_and_clipped() -> None:
    magnitudes = np.array([operation.magnitude for operation in _flat(_draw("rand-m9-mstd0.5-inc1"))])
    assert magnitudes.max() == 10.0
    below = magnitudes[magnitudes < 10.0]
    expected = stats.truncnorm(-np.inf, 2.0, loc=9, scale=0.5)
    assert stats.kstest(below, expected.cdf).pvalue > 1e-3
    clipped = len(magnitudes) - len(below)
    assert stats.binomtest(clipped, len(magnitudes), stats.norm.sf(2)).pvalue > 1e-3


def test_magnitude_is_constant_without_noise_and_uniform_with_mstd_over_100() -> None:
    assert {operation.magnitude for operation in _flat(_draw("rand-m7"))} == {7.0}
    uniform = [operation.magnitude for operation in _flat(_draw("rand-m8-mstd101"))]
    assert stats.kstest(uniform, stats.uniform(0, 8).cdf).pvalue > 1e-3


def test_both_signs_and_both_interpolations_are_drawn_equally_often() -> None:
    operations = _flat(_draw("rand-m9-inc1", interpolation="random"))
    for ones in ([o.sign == 1 for o in operations], [o.resample == Image.Resampling.BICUBIC for o in operations]):
        assert stats.binomtest(sum(ones), len(ones), 0.5).pvalue > 1e-3


def test_w0_follows_the_table_of_weights_without_replacement() -> None:
    drawn = _draw("rand-p1-w0-inc1")
    assert all(first.name != second.name for first, second in drawn)
    counts = Counter(first.name for first, _ in drawn)
    assert not {"Invert", "PosterizeIncreasing"} & set(counts)
    weights = {name: operation.weight for name, operation in INCREASING_OPERATIONS.items() if operation.weight}
    assert sum(weights.values()) == pytest.approx(1.0)
    observed = [counts[name] for name in weights]
    assert stats.chisquare(observed, np.array(list(weights.values())) * IMAGES).pvalue > 1e-3


def test_most_but_not_all_images_change() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    augment = RandAugment(parse_policy("rand-m9-mstd0.5-inc1"), "bicubic", MEAN)
    changed = [augment(image, generator(0, 0, index, SAMPLE)).tobytes() != image.tobytes() for index in range(200)]
    # A quarter gets no operation at all, and a few operations do not change noise (autocontrast).
    assert 0.6 < np.mean(changed) < 0.8


def test_color_jitter_factors_are_uniform() -> None:
    grey = Image.new("RGB", (4, 4), (100, 100, 100))
    # Only brightness changes a uniform grey: contrast and saturation move towards the same grey.
    levels = [np.asarray(color_jitter(grey, 0.4, generator(0, 0, index, SAMPLE)))[0, 0, 0] for index in range(1000)]
    assert 60 <= min(levels) < 64
    assert 136 < max(levels) <= 140
    assert stats.kstest(np.array(levels) + 0.5, stats.uniform(60, 80).cdf).pvalue > 1e-3
    assert color_jitter(grey, 0.0, generator(0, 0, 0, SAMPLE)) is grey
