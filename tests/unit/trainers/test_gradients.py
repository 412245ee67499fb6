"""Norm, clipping and overflow detection."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

from focal.distributed.device import Device
from focal.trainers import gradients as gradients_module
from focal.trainers.gradients import OverflowCheck, clip_factor, global_norm, scale_or_zero
from focal.trainers.losses import create_loss
from focal.trainers.optimizer import create_optimizer
from focal.trainers.train_one_step import StepOutputs, TrainOneStep, trained_parameters
from tests.unit.toy_network import ToyNetwork


def arrays():
    rng = np.random.default_rng(5)
    return [rng.standard_normal(shape).astype(np.float32) for shape in ((3, 4), (7,), (2, 3, 4))]


def test_global_norm_is_over_all_gradients():
    values = arrays()
    norm = float(global_norm(tuple(Tensor(value) for value in values)))
    assert norm == pytest.approx(np.sqrt(sum((value.astype(np.float64) ** 2).sum() for value in values)), rel=1e-6)
    # a long vector loses no digits
    assert float(global_norm((Tensor(np.full(3_000_000, 0.3, np.float32)),))) == pytest.approx(
        np.float64(np.float32(0.3)) * np.sqrt(3_000_000), rel=1e-6
    )


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_norm_is_not_finite_if_one_entry_is_not(bad):
    values = arrays()
    values[1][3] = bad
    assert not np.isfinite(float(global_norm(tuple(Tensor(value) for value in values))))


def test_clip_brings_the_norm_to_the_limit_and_leaves_small_gradients():
    values = arrays()
    norm = global_norm(tuple(Tensor(value) for value in values))
    clipped = scale_or_zero(tuple(Tensor(value) for value in values), clip_factor(norm, 1.5), Tensor(True))
    assert float(global_norm(clipped)) == pytest.approx(1.5, rel=1e-5)
    assert float(clip_factor(Tensor(1.0, ms.float32), 5.0)) == 1.0
    assert float(clip_factor(Tensor(10.0, ms.float32), 5.0)) == pytest.approx(5 / (10 + 1e-6), rel=1e-6)


def test_gradients_of_a_non_finite_step_become_zero():
    values = [np.array([1.0, np.inf], np.float32), np.array([np.nan], np.float32)]
    zeros = scale_or_zero(tuple(Tensor(value) for value in values), Tensor(np.nan, ms.float32), Tensor(False))
    assert all((value.asnumpy() == 0).all() for value in zeros)


STATUS = Parameter(Tensor(np.zeros(8, np.int32)), name="status", requires_grad=False)


class ClearStatus(nn.Cell):
    """Stands in for NPUClearFloatStatusV2: clears a register that is a Parameter here."""

    def construct(self, status):
        return ops.assign(STATUS, ops.zeros_like(status))


class GetStatus(nn.Cell):
    """Stands in for NPUGetFloatStatusV2."""

    def construct(self, status):
        return ops.depend(STATUS + 0, status)


class SaturatingStep(nn.Cell):
    """A computation that clamps and raises the register as a 910A does, between start and read."""

    def __init__(self):
        super().__init__()
        self.check = OverflowCheck()

    def construct(self, inputs):
        inputs = self.check.start(inputs)
        raised = (inputs > 65504).any().astype(ms.int32)
        ops.assign_add(STATUS, raised * Tensor(np.ones(8, np.int32)))
        clamped = ops.minimum(inputs, Tensor(65504.0, ms.float32))
        return self.check.read((clamped,))


@pytest.fixture
def saturating(monkeypatch):
    monkeypatch.setattr(gradients_module, "saturates_on_overflow", lambda: True)
    monkeypatch.setattr(gradients_module, "NPUClearFloatStatusV2", ClearStatus)
    monkeypatch.setattr(gradients_module, "NPUGetFloatStatusV2", GetStatus)


class SaturatingTeacher(nn.Cell):
    """Logits, and an overflow on the way to them."""

    def construct(self, inputs):
        ops.assign_add(STATUS, Tensor(np.ones(8, np.int32)))
        return inputs[:, :4] * 1.0


def test_an_overflow_in_the_teacher_does_not_count_as_one_of_the_network(saturating, make_config, batch):
    config = make_config(distillation="soft", teacher="t.ckpt")
    network = ToyNetwork(0)
    optimizer = create_optimizer(trained_parameters(network), config.optim, config.model, np.full(20, 0.05))
    parts = (network, create_loss(config.step), optimizer, config.step, Device(), None)
    inputs, targets = (Tensor(values) for values in batch(0))
    outputs = StepOutputs(*TrainOneStep(*parts, SaturatingTeacher())(inputs, targets).asnumpy().tolist())
    assert outputs.updated == 1 and outputs.nonfinite == 0
    STATUS.set_data(Tensor(np.zeros(8, np.int32)))


def test_the_status_flag_is_cleared_before_and_read_after(saturating):
    step = SaturatingStep()
    small, large = Tensor(np.ones(3, np.float32)), Tensor(np.full(3, 1e6, np.float32))
    assert float(step(large)) == 1.0
    assert float(step(small)) == 0.0, "the flag of the step before must be gone"
    STATUS.set_data(Tensor(np.ones(8, np.int32)))  # as evaluation might leave it
    assert float(step(small)) == 0.0
