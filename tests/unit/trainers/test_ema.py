"""EMA weights against their formula."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, ParameterTuple, Tensor, nn

from focal.trainers.buckets import Buckets
from focal.trainers.ema import Ema


class Update(nn.Cell):
    """Weights into their bucket, and the bucket into the average: one graph, as in the step.

    Tensors that come in a tuple would be constants of the graph, which would be compiled anew for each update.
    """

    def __init__(self, buckets, ema):
        super().__init__(auto_prefix=False)
        self.buckets, self.ema = buckets, ema

    def construct(self, weight, bias, finite, updates):
        return self.ema(self.buckets((weight, bias)), finite, updates)


def make(decay, warmup):
    rng = np.random.default_rng(3)
    parameters = ParameterTuple(
        [
            Parameter(Tensor(rng.standard_normal((3, 4)).astype(np.float32)), name="a.weight"),
            Parameter(Tensor(rng.standard_normal(4).astype(np.float32)), name="a.bias"),
        ]
    )
    buckets = Buckets(parameters, [(0.1, 1.0)] * 2)
    ema = Ema(buckets, decay, warmup)
    return ema, Update(buckets, ema)


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("decay", [0.9, 0.99992])
def test_ema_weights_follow_the_formula(decay, warmup):
    ema, update_once = make(decay, warmup)
    rng = np.random.default_rng(4)
    expected = [parameter.asnumpy().astype(np.float64) for parameter in ema.parameters_to_average]
    assert [average.name for average in ema.averages] == ["ema.a.weight", "ema.a.bias"]
    for update in range(1, 31):
        rate = decay if not warmup else min(decay, (1 + update) / (10 + update))
        weights = [rng.standard_normal(parameter.shape).astype(np.float32) for parameter in ema.parameters_to_average]
        expected = [rate * average + (1 - rate) * weight for average, weight in zip(expected, weights)]
        update_once(*map(Tensor, weights), Tensor(True), Tensor(update, ms.int32))
        for average, value in zip(ema.averages, expected):
            assert np.abs(average.asnumpy() - value).max() < 2e-6


def test_a_skipped_step_changes_no_bit():
    ema, update_once = make(0.5, True)
    before = [average.asnumpy().copy() for average in ema.averages]
    weights = [Tensor(parameter.asnumpy() + 1) for parameter in ema.parameters_to_average]
    update_once(*weights, Tensor(False), Tensor(0, ms.int32))
    assert all((average.asnumpy() == value).all() for average, value in zip(ema.averages, before))
    assert not any(vector.requires_grad for vector in ema.vectors)
