"""EMA weights against their formula."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, ParameterTuple, Tensor

from focal.trainers.buckets import Buckets
from focal.trainers.ema import Ema


def make(decay, warmup):
    rng = np.random.default_rng(3)
    parameters = ParameterTuple(
        [
            Parameter(Tensor(rng.standard_normal((3, 4)).astype(np.float32)), name="a.weight"),
            Parameter(Tensor(rng.standard_normal(4).astype(np.float32)), name="a.bias"),
        ]
    )
    buckets = Buckets(parameters, [(0.1, 1.0)] * 2)
    return buckets, Ema(buckets, decay, warmup)


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("decay", [0.9, 0.99992])
def test_ema_weights_follow_the_formula(decay, warmup):
    buckets, ema = make(decay, warmup)
    parameters = buckets.parameters
    rng = np.random.default_rng(4)
    expected = [parameter.asnumpy().astype(np.float64) for parameter in parameters]
    assert [average.name for average in ema.averages] == ["ema.a.weight", "ema.a.bias"]
    for update in range(1, 31):
        rate = decay if not warmup else min(decay, (1 + update) / (10 + update))
        for i, parameter in enumerate(parameters):
            value = rng.standard_normal(parameter.shape).astype(np.float32)
            parameter.set_data(Tensor(value))
            expected[i] = rate * expected[i] + (1 - rate) * value
        ema(buckets(tuple(parameter + 0 for parameter in parameters)), Tensor(True), Tensor(update, ms.int32))
        for average, value in zip(ema.averages, expected):
            assert np.abs(average.asnumpy() - value).max() < 2e-6


def test_a_skipped_step_changes_no_bit():
    buckets, ema = make(0.5, True)
    before = [average.asnumpy().copy() for average in ema.averages]
    weights = buckets(tuple(parameter + 1 for parameter in buckets.parameters))
    ema(weights, Tensor(False), Tensor(0, ms.int32))
    assert all((average.asnumpy() == value).all() for average, value in zip(ema.averages, before))
    assert not any(vector.requires_grad for vector in ema.vectors)
