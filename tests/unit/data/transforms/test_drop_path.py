"""Drop path factors have the right rate and scale, and depend on seed, epoch and batch number alone."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import numpy as np

from focal.config.schema import Config
from focal.data import TrainData, check_data
from focal.data.transforms.drop_path import draw_drop_path


def test_factors_are_zero_at_the_rate_and_keep_the_mean() -> None:
    rates = (0.0, 0.1, 0.5)
    factors = draw_drop_path(rates, 20_000, np.random.default_rng(0))
    assert factors.shape == (6, 20_000) and factors.dtype == np.float32
    for row, rate in zip(factors, np.repeat(rates, 2)):
        assert set(np.unique(row)) <= {0.0, np.float32(1 / (1 - rate))}
        # Five standard deviations of a binomial distribution.
        assert abs((row == 0).mean() - rate) <= 5 * np.sqrt(rate * (1 - rate) / len(row))


def test_rows_and_samples_are_independent() -> None:
    kept = draw_drop_path((0.5, 0.5), 40_000, np.random.default_rng(1)) > 0
    for one in range(4):
        for other in range(one):
            assert abs((kept[one] == kept[other]).mean() - 0.5) < 5 * 0.5 / np.sqrt(40_000)
    assert abs((kept[:, 1:] == kept[:, :-1]).mean() - 0.5) < 5 * 0.5 / np.sqrt(4 * 40_000)


def test_factors_differ_between_batches_ranks_epochs_and_seeds(
    image_folder: Path, make_config: Callable[..., Config]
) -> None:
    def draw(seed: int, rank: int, epoch: int, step: int) -> bytes:
        config = make_config(batch_size=2, seed=seed, drop_path_rate=0.5)
        data = TrainData(config, check_data(config, str(image_folder)), rank, 2)
        return data.load_batch(epoch, step)[0].drop_path.tobytes()

    places = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    drawn = [draw(*place) for place in places]
    assert len(set(drawn)) == len(places)
    assert [draw(*place) for place in places] == drawn


def test_rates_rise_linearly_over_the_blocks(make_config: Callable[..., Config]) -> None:
    rates = make_config(drop_path_rate=0.3, arch="focalv2_tiny_useconv_patch4_window7_224").model.drop_path_rates
    np.testing.assert_allclose(rates, np.linspace(0, 0.3, 12))
