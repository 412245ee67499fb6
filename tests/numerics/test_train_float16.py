"""Float16 on real digits: the nano network learns as well as in float32."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from sklearn.datasets import load_digits

from focal.evaluation import EvalStep
from focal.models import create_model
from focal.models.precision import apply_precision
from focal.trainers.losses import SoftTargetCrossEntropy
from focal.trainers.optimizer import create_optimizer
from focal.trainers.train_one_step import OUTPUTS, TrainOneStep, trained_parameters
from tests.numerics.reference_cases import case_config
from tests.numerics.synthetic import digits_images, digits_split

STEPS, BATCH = 60, 32


def train(level):
    """Top-1 on the 360 held-out digits after 60 updates from the product's own initialisation, and all outputs."""
    # A scale of 2^24 overflows float16 at first: the dynamic scale has to find its way down.
    config = case_config(
        "nano_v2_useconv", device_target="CPU", amp_level=level, loss_scale=2**24, is_dynamic_loss_scale=True
    )
    network = create_model(config)
    apply_precision(network, config.step.amp_level, config.step.keep_bn_fp32)
    weights = trained_parameters(network)
    rates = 3e-3 * np.minimum(1, (np.arange(STEPS) + 1) / 10)
    step = TrainOneStep(
        network, SoftTargetCrossEntropy(), create_optimizer(weights, config.optim, config.model, rates), config.step
    )
    labels = load_digits().target
    targets = np.eye(10, dtype=np.float32)[labels] * 0.9 + 0.01
    train_indices, held_out = digits_split()
    order = np.random.default_rng(0).permutation(np.tile(train_indices, 2))
    rows = []
    for number in range(STEPS):
        chosen = order[number * BATCH : (number + 1) * BATCH]
        outputs = step(Tensor(digits_images(chosen)), Tensor(targets[chosen]))
        rows.append(outputs.asnumpy())
    eval_step = EvalStep(network)
    eval_step.set_train(False)
    sums = eval_step(
        Tensor(digits_images(held_out)), Tensor(labels[held_out].astype(np.int32)), Tensor(np.ones(360, np.float32))
    )
    state_formats = {parameter.dtype for parameter in step.get_parameters()}
    return 100 * float(sums.asnumpy()[0]) / 360, dict(zip(OUTPUTS, np.array(rows).T)), state_formats


@pytest.mark.slow
def test_float16_is_within_two_points_of_float32():
    full, _, _ = train("O0")
    half, outputs, formats = train("O2")
    skipped = int(outputs["nonfinite"].sum())
    print(f"top-1 float32 {full:.2f} %, float16 {half:.2f} %, {skipped} updates skipped on the way to a good scale")
    assert full > 80, "60 updates are enough to learn digits, or the comparison says nothing"
    assert half > full - 2
    assert 0 < skipped < 30 and outputs["scale"][-1] < 2**24
    assert formats == {ms.float32, ms.int32}, "weights, EMA weights and moments are never float16"
