"""Mixup and CutMix draw from the right distributions, and mix pixels and targets in the same proportion."""

from __future__ import annotations

from typing import Callable

import numpy as np
import pytest
from scipy import stats

from focal.config.schema import AugmentConfig, Config
from focal.data.sampler import BATCH, generator
from focal.data.transforms.mixup import Mix, draw_mix, mixed_targets, partner_masks
from tests.unit.data.transforms.host_path import mix_images

HW = (32, 48)


@pytest.fixture
def augment(make_config: Callable[..., Config]) -> Callable[..., AugmentConfig]:
    return lambda **changes: make_config(**changes).augment


def _draws(augment: AugmentConfig, batches: int = 3000, batch: int = 4, hw: tuple[int, int] = HW) -> list[Mix]:
    return [draw_mix(augment, batch, hw, generator(0, 0, index, BATCH)) for index in range(batches)]


def test_mixup_lambda_is_beta(augment: Callable[..., AugmentConfig]) -> None:
    mixes = _draws(augment(cutmix=0.0, mix_up=0.8))
    assert all((mix.lam == mix.lam[0]).all() and mix.boxes == (None,) * 4 for mix in mixes)
    assert stats.kstest([mix.lam[0] for mix in mixes], stats.beta(0.8, 0.8).cdf).pvalue > 1e-3


def test_cutmix_lambda_is_the_area_outside_its_box(augment: Callable[..., AugmentConfig]) -> None:
    for mix in _draws(augment(mix_up=0.0, cutmix=1.0)):
        top, left, bottom, right = mix.boxes[0]
        assert 0 <= top <= bottom <= HW[0] and 0 <= left <= right <= HW[1]
        assert mix.lam[0] == pytest.approx(1 - (bottom - top) * (right - left) / (HW[0] * HW[1]), abs=1e-6)


def test_cutmix_boxes_are_centred_evenly_and_sized_by_beta(augment: Callable[..., AugmentConfig]) -> None:
    side = 1000
    boxes = np.array([mix.boxes[0] for mix in _draws(augment(mix_up=0.0, cutmix=1.0), hw=(side, side))])
    top, left, bottom, right = boxes.T
    # Boxes that no border clips show the lambda that was drawn; with alpha 1 it is uniform, given that it is not
    # clipped. The side of a box is the fraction r = sqrt(1 - lambda), of density 2r, and the box is whole
    # with probability (1 - r)^2, which makes beta(2, 3).
    whole = (top > 0) & (left > 0) & (bottom < side) & (right < side)
    assert not ((bottom - top)[whole] % 2).any() and not ((right - left)[whole] % 2).any()  # as timm's
    fraction = (bottom - top)[whole] / side
    assert stats.kstest(fraction + 1.0 / side, stats.beta(2, 3).cdf).pvalue > 1e-3
    centre = (top + bottom)[whole] / 2 / side
    # Given its size, the position of a whole box is uniform.
    assert stats.kstest((centre - fraction / 2) / (1 - fraction), stats.uniform().cdf).pvalue > 1e-3


def test_mixup_prob_and_switch_prob_are_the_observed_frequencies(augment: Callable[..., AugmentConfig]) -> None:
    mixes = _draws(augment(mixup_prob=0.7, switch_prob=0.3))
    mixed = [mix for mix in mixes if mix.lam[0] != 1.0 or mix.boxes[0] is not None]
    assert stats.binomtest(len(mixed), len(mixes), 0.7).pvalue > 1e-3
    cut = sum(mix.boxes[0] is not None for mix in mixed)
    assert stats.binomtest(cut, len(mixed), 0.3).pvalue > 1e-3


@pytest.mark.parametrize("mode", ("batch", "pair", "elem"))
def test_without_mixing_even_an_odd_batch_is_left_alone(augment: Callable[..., AugmentConfig], mode: str) -> None:
    mix = draw_mix(augment(mix_up=0.0, cutmix=0.0, mixup_mode=mode), 3, HW, generator(0, 0, 0, BATCH))
    rows, columns = partner_masks(mix, HW)
    assert not (rows * columns).any()
    assert (mixed_targets(np.array([2, 0, 1]), mix.lam, 3, 0.0) == np.eye(3)[[2, 0, 1]]).all()


@pytest.mark.parametrize("mode", ("batch", "pair", "elem"))
def test_each_mode_shares_its_draws_by_batch_pair_or_sample(augment: Callable[..., AugmentConfig], mode: str) -> None:
    mix = draw_mix(augment(mixup_mode=mode), 8, HW, generator(0, 0, 1, BATCH))
    distinct = {"batch": 1, "pair": 4, "elem": 8}[mode]
    assert len(np.unique(mix.lam)) == distinct
    if mode != "elem":
        assert (mix.lam == mix.lam[::-1]).all()
        assert mix.boxes == mix.boxes[::-1]


@pytest.mark.parametrize("mode", ("batch", "pair", "elem"))
def test_pixels_follow_the_definition(augment: Callable[..., AugmentConfig], mode: str) -> None:
    images = np.random.default_rng(0).standard_normal((6, 3, *HW)).astype(np.float32)
    for seed in range(20):
        mix = draw_mix(augment(mixup_mode=mode, mixup_prob=0.8), 6, HW, generator(seed, 0, 0, BATCH))
        rows, columns = partner_masks(mix, HW)
        assert rows.shape == (6, 1, HW[0], 1) and columns.shape == (6, 1, 1, HW[1]) and rows.dtype == np.float32
        mixed = images + rows * columns * (images[::-1] - images)
        np.testing.assert_allclose(mixed, mix_images(images, mix), atol=2e-6)


@pytest.mark.parametrize("smoothing", (0.0, 0.1))
@pytest.mark.parametrize("mode", ("batch", "pair", "elem"))
def test_targets_follow_lambda_and_label_smoothing(
    augment: Callable[..., AugmentConfig], mode: str, smoothing: float
) -> None:
    labels = np.array([4, 0, 1, 1, 2, 4])  # both of the middle pair, and of the outer pair, have the same class
    mix = draw_mix(augment(mixup_mode=mode), 6, HW, generator(3, 0, 0, BATCH))
    targets = mixed_targets(labels, mix.lam, 5, smoothing)
    assert targets.dtype == np.float32 and targets.shape == (6, 5)
    np.testing.assert_allclose(targets.sum(axis=1), 1.0, atol=1e-6)
    own = np.full((6, 5), smoothing / 5)
    own[np.arange(6), labels] += 1 - smoothing
    expected = mix.lam[:, None] * own + (1 - mix.lam[:, None]) * own[::-1]
    np.testing.assert_allclose(targets, expected, atol=1e-6)
