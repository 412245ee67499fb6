"""Rules of the loss scale against a plain loop."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor

from focal.trainers.loss_scale import LARGEST_SCALE, LossScale


def run(scale: LossScale, flags):
    seen = []
    for flag in flags:
        bad = int(scale(Tensor(bool(flag))).asnumpy())
        seen.append((float(scale.value.asnumpy()), int(scale.good_steps.asnumpy()), bad))
    return seen


def expected(initial, window, flags):
    value, good, bad, seen = initial, 0, 0, []
    for flag in flags:
        if flag:
            good, bad = good + 1, 0
            if good == window:
                value, good = min(value * 2, LARGEST_SCALE), 0
        else:
            value, good, bad = max(value / 2, 1.0), 0, bad + 1
        seen.append((value, good, bad))
    return seen


def test_the_scale_halves_doubles_and_counts():
    flags = np.random.default_rng(0).random(200) < 0.8
    assert run(LossScale(1024.0, True, 3), flags) == expected(1024.0, 3, flags)


def test_the_scale_never_falls_below_one():
    seen = run(LossScale(4.0, True, 3), [False] * 5)
    assert [value for value, _, _ in seen] == [2.0, 1.0, 1.0, 1.0, 1.0]
    assert [bad for _, _, bad in seen] == [1, 2, 3, 4, 5]


def test_the_scale_stays_finite():
    seen = run(LossScale(LARGEST_SCALE / 2, True, 1), [True] * 3)
    assert [value for value, _, _ in seen] == [LARGEST_SCALE] * 3


def test_a_fixed_scale_never_moves_but_counts():
    seen = run(LossScale(128.0, False, 2), [True, False, False, True, True, True])
    assert [value for value, _, _ in seen] == [128.0] * 6
    assert [bad for _, _, bad in seen] == [0, 1, 2, 0, 0, 0]
