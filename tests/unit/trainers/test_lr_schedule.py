"""Schedules against their formulas, written out again for single steps."""

from __future__ import annotations

import math

import numpy as np
import pytest

from focal.config.loading import all_keys
from focal.trainers.lr_schedule import learning_rate_factor, learning_rates


def config_of(make_config, **overrides):
    settings = {"base_lr": 5e-4, "min_lr": 5e-6, "warmup_lr": 1e-5, "cool_lr": 6e-6, "epochs": 320}
    return make_config(**{**settings, **overrides}).optim


def test_the_cosine_schedule_has_the_reports_rates(make_config):
    optim = config_of(make_config, warmup_length=20, cool_length=20)
    rates = learning_rates(optim, 2502)
    assert rates.shape == (320 * 2502,) and rates.dtype == np.float64
    assert rates[0] == pytest.approx(1e-5)
    step = 7 * 2502 + 100
    assert rates[step] == pytest.approx(1e-5 + (5e-4 - 1e-5) * (7 + 100 / 2502) / 20)
    assert rates[20 * 2502] == pytest.approx(5e-4)
    step = 150 * 2502 + 1251
    assert rates[step] == pytest.approx(5e-4 * 0.5 * (1 + math.cos(math.pi * 130.5 / 300)))
    assert rates[300 * 2502 - 1] == pytest.approx(
        max(5e-6, 5e-4 * 0.5 * (1 + math.cos(math.pi * (280 - 1 / 2502) / 300)))
    )
    assert (rates[300 * 2502 :] == 6e-6).all()


def test_no_schedule_falls_below_min_lr(make_config):
    for name in all_keys()["lr_scheduler"].field.metadata["choices"]:
        optim = config_of(make_config, lr_scheduler=name, min_lr=2e-4, warmup_length=5, cool_length=5, lr_gamma=0.5)
        assert learning_rates(optim, 3).min() == 2e-4, name


def test_each_step_has_its_own_rate(make_config):
    rates = learning_rates(config_of(make_config, epochs=10, min_lr=0.0), 7)
    assert (np.diff(rates) < 0).all()


@pytest.mark.parametrize(
    "name, expected",
    [
        ("constant_lr", lambda e: 5e-4),
        ("multistep_lr", lambda e: 5e-4 * 0.3 ** math.floor(e / 2)),
        ("exp_lr", lambda e: 5e-4 * 0.3**e),
        ("polynomial", lambda e: 5e-6 + (5e-4 - 5e-6) * (1 - e / 8) ** 2),
    ],
)
def test_the_other_schedules_follow_their_formulas(make_config, name, expected):
    optim = config_of(
        make_config, lr_scheduler=name, epochs=10, warmup_length=2, lr_gamma=0.3, lr_adjust=2.0, lr_power=2.0
    )
    rates = learning_rates(optim, 4)
    for step in range(8, 40):
        assert rates[step] == pytest.approx(max(5e-6, expected(step / 4 - 2)), rel=1e-12), step


def test_rates_are_linear_in_images_per_step(make_config):
    assert learning_rate_factor(64, 8, 1) == 1.0
    assert learning_rate_factor(32, 2, 4) == 0.5
    optim = config_of(make_config, warmup_length=20, cool_length=20)
    assert np.allclose(learning_rates(optim, 5, 2.0), 2 * learning_rates(optim, 5), rtol=1e-15)


def test_an_epoch_without_steps_is_refused(make_config):
    with pytest.raises(ValueError, match="steps_per_epoch: 0"):
        learning_rates(config_of(make_config), 0)
