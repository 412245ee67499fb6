"""Any schedule that the configuration accepts is finite, within its bounds and as long as the training."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from focal.config import load_config
from focal.trainers.lr_schedule import learning_rates

RATES = st.floats(0, 10) | st.sampled_from([0.0, 1e-300, 1e-12])


@st.composite
def schedules(draw: st.DrawFn) -> dict[str, Any]:
    epochs = draw(st.integers(1, 60))
    warmup = draw(st.integers(0, epochs))
    base_lr = draw(st.floats(1e-12, 10))
    return {
        "lr_scheduler": draw(st.sampled_from(["cosine_lr", "constant_lr", "multistep_lr", "exp_lr", "polynomial"])),
        "epochs": epochs,
        "warmup_length": warmup,
        "cool_length": draw(st.integers(0, epochs - warmup)),
        "base_lr": base_lr,
        "min_lr": base_lr * draw(st.floats(0, 1)),
        "warmup_lr": draw(RATES),
        "cool_lr": draw(RATES),
        "lr_adjust": draw(st.floats(1e-6, 1e6)),
        "lr_gamma": draw(st.floats(1e-6, 1)),
        "lr_power": draw(st.floats(1e-6, 100)),
    }


@settings(max_examples=200, deadline=None, derandomize=True)
@given(keys=schedules(), steps_per_epoch=st.integers(1, 30), factor=st.floats(1e-3, 1e3))
def test_rates_are_finite_and_between_their_bounds(keys: dict[str, Any], steps_per_epoch: int, factor: float) -> None:
    rates = learning_rates(load_config({**keys, "device_target": "CPU"}).optim, steps_per_epoch, factor)
    highest = max(keys["base_lr"], keys["warmup_lr"], keys["cool_lr"])
    assert rates.shape == (keys["epochs"] * steps_per_epoch,) and rates.dtype == np.float64
    assert np.isfinite(rates).all() and (rates >= 0).all()
    assert (rates >= keys["min_lr"] * factor).all()
    assert (rates <= highest * factor * (1 + 1e-12)).all()
