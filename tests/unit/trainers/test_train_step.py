"""The whole step on a toy network, against the same step in NumPy."""

from __future__ import annotations

import gc

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from focal.data.transforms.boxes import box_masks
from focal.data.transforms.on_device import PrepareImages
from focal.distributed.device import Device
from focal.trainers.losses import SoftTargetCrossEntropy
from focal.trainers.optimizer import create_optimizer
from focal.trainers.train_one_step import StepOutputs, TrainOneStep, trained_parameters

RATE = 0.05
ALONE = Device()


@pytest.fixture
def make_step(make_config, toy_network):
    def make(seed=0, device=ALONE, with_counter=False, prepare_images=None, **overrides):
        config = make_config(ema_decay=0.9, weight_decay=0.1, **overrides)
        network = toy_network(seed, with_counter)
        weights = trained_parameters(network)
        optimizer = create_optimizer(weights, config.optim, config.model, np.full(20, RATE))
        return TrainOneStep(network, SoftTargetCrossEntropy(), optimizer, config.step, device, prepare_images)

    return make


def run(step, inputs, targets):
    return StepOutputs(*step(Tensor(inputs), Tensor(targets)).asnumpy().tolist())._asdict()


def state_of(step, without=()):
    return {p.name: p.asnumpy().copy() for p in step.get_parameters() if not p.name.startswith(tuple(without))}


def weights_of(step):
    return [parameter.asnumpy().copy() for parameter in step.optimizer.parameters_to_train]  # asnumpy may be a view


def test_the_whole_step_is_that_of_numpy(make_step, batch, numpy_gradients):
    step = make_step(clip_global_norm_value=0.5)
    weights = [w.astype(np.float64) for w in weights_of(step)]
    averages, m, v = [w.copy() for w in weights], [0.0] * 3, [0.0] * 3
    for t in range(1, 9):
        inputs, targets = batch(t)
        outputs = run(step, inputs, targets)
        loss, gradients = numpy_gradients(weights, inputs, targets)
        norm = np.sqrt(sum((g**2).sum() for g in gradients))
        factor = min(1.0, 0.5 / (norm + 1e-6))
        for i, decay in enumerate((0.1, 0.0, 0.1)):
            g = gradients[i] * factor
            m[i], v[i] = 0.9 * m[i] + 0.1 * g, 0.999 * v[i] + 0.001 * g**2
            direction = m[i] / (1 - 0.9**t) / (np.sqrt(v[i] / (1 - 0.999**t)) + 1e-8)
            weights[i] = weights[i] - RATE * (direction + decay * weights[i])
            averages[i] = 0.9 * averages[i] + 0.1 * weights[i]
        assert outputs["loss"] == pytest.approx(loss, rel=1e-5)
        assert outputs["grad_norm"] == pytest.approx(norm, rel=1e-4)
        assert (outputs["updated"], outputs["nonfinite"], outputs["scale"]) == (1.0, 0.0, 1024.0)
        assert outputs["lr"] == pytest.approx(RATE)
    for ours, reference in zip(weights_of(step), weights):
        assert np.abs(ours - reference).max() < 1e-4
    names = [parameter.name for parameter in step.optimizer.parameters_to_train]
    for average in step.ema.averages:
        reference = averages[names.index(average.name[len("ema.") :])]
        assert np.abs(average.asnumpy() - reference).max() < 1e-4


def test_bytes_with_boxes_train_as_the_images_that_are_prepared_from_them(make_step, make_config):
    rng, config = np.random.default_rng(0), make_config(batch_size=4)
    pixels, targets = rng.integers(0, 256, (4, 3, 1, 2), dtype=np.uint8), np.eye(4, dtype=np.float32)
    boxes = tuple(Tensor(mask) for mask in (
        *box_masks([[(0, 0, 1, 1)], [], [], []], 1, (1, 2)), *box_masks([[(0, 1, 1, 2)]] * 4, 1, (1, 2)),
    ))  # fmt: skip
    prepare_images = PrepareImages(config.data)
    prepared = prepare_images(Tensor(pixels), *boxes).asnumpy()
    weights, losses = [], []
    for inputs in ((Tensor(pixels), Tensor(targets), None, *boxes), (Tensor(prepared), Tensor(targets))):
        step = make_step(prepare_images=prepare_images)
        losses.append([float(step(*inputs).asnumpy()[1]) for _ in range(3)])
        weights.append(weights_of(step))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for ours, reference in zip(*weights):
        np.testing.assert_allclose(ours, reference, atol=1e-6)
    unmixed = prepare_images.normalize(Tensor(pixels)).asnumpy()
    assert np.abs(prepared - unmixed).max() > 0.1, "the boxes make a difference"


def test_loss_scale_on_and_off_give_the_same_weights(make_step, batch):
    results = []
    for overrides in (
        {"loss_scale": 1, "is_dynamic_loss_scale": False},
        {"loss_scale": 4096, "is_dynamic_loss_scale": True, "scale_window": 3},
    ):
        step = make_step(**overrides)
        for t in range(8):
            run(step, *batch(t))
        results.append(weights_of(step))
    assert float(step.loss_scale.value.asnumpy()) == 4096 * 4
    assert all((a == b).all() for a, b in zip(*results)), "powers of two scale without rounding"


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_non_finite_step_changes_only_scale_and_counters(make_step, batch, accumulation):
    step = make_step(accumulation_step=accumulation, with_counter=True)
    for t in range(2 * accumulation):
        run(step, *batch(t))
    free = ("loss_scale", "schedule.position", "random_counter", "accumulated")
    before = state_of(step, free)
    inputs, targets = batch(9)
    for t in range(accumulation):
        outputs = run(step, inputs, targets * (np.nan if t == 0 else 1))
    assert (outputs["nonfinite"], outputs["nonfinite_in_a_row"]) == (1.0, 1.0)
    after = state_of(step, free)
    assert len(before) > 10 and all((after[name] == before[name]).all() for name in before)
    assert float(step.loss_scale.value.asnumpy()) == 512.0
    assert int(step.optimizer.step.asnumpy()) == 2
    assert int(step.optimizer.position.asnumpy()) == 3
    assert int(step.random_counter.asnumpy()) == 3 * accumulation
    for _ in range(accumulation):
        outputs = run(step, inputs, targets)
    assert (outputs["nonfinite"], outputs["nonfinite_in_a_row"], outputs["scale"]) == (0.0, 0.0, 512.0)
    assert np.isfinite(np.concatenate([w.ravel() for w in weights_of(step)])).all()


def test_micro_batches_accumulate_to_one_large_batch(make_step, batch):
    large, small = make_step(clip_global_norm_value=0.3), make_step(clip_global_norm_value=0.3, accumulation_step=4)
    for t in range(5):
        inputs, targets = batch(t, 16)
        expected = run(large, inputs, targets)
        for part in range(4):
            rows = slice(4 * part, 4 * part + 4)
            outputs = run(small, inputs[rows], targets[rows])
            assert outputs["updated"] == (part == 3)
        # the norm before clipping is that of the mean: clipping each part would give another one
        assert outputs["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5)
        assert outputs["grad_norm"] > 0.3
        assert outputs["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    for a, b in zip(weights_of(large), weights_of(small)):
        assert np.abs(a - b).max() < 1e-5
    for a, b in zip(large.ema.averages, small.ema.averages):
        assert np.abs(a.asnumpy() - b.asnumpy()).max() < 1e-5
    assert int(small.optimizer.step.asnumpy()) == 5


class OtherRank(nn.Cell):
    """All-reduce sum with a second rank that holds the same gradients, and whose flag and loss are given."""

    def __init__(self, flag):
        super().__init__()
        self.other = Tensor(np.array([flag, 2.0], np.float32))

    def construct(self, values):
        if values.shape == (2,) and values.ndim == 1:
            return values + self.other
        return values * 2


def pretend_other_rank(step, flag):
    """Have the step talk to an `OtherRank` instead of a process group."""
    step.all_reduce_sum = OtherRank(flag)


@pytest.mark.parametrize("flag", [0.0, 1.0])
def test_ranks_agree_on_finiteness(make_step, batch, flag):
    step = make_step(device=Device(0, 2))
    pretend_other_rank(step, flag)
    before = weights_of(step)
    outputs = run(step, *batch(0))
    assert outputs["nonfinite"] == flag
    changed = any((a != b).any() for a, b in zip(before, weights_of(step)))
    assert changed == (flag == 0.0), "an overflow on the other rank alone must skip the update here too"


def test_the_mean_over_ranks_is_taken_once(make_step, batch):
    alone, pair = make_step(), make_step(device=Device(0, 2))
    pretend_other_rank(pair, 0.0)
    one, two = run(alone, *batch(0)), run(pair, *batch(0))
    assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-6)
    assert two["loss"] == pytest.approx((one["loss"] + 2.0) / 2, rel=1e-6)


def test_the_random_counter_starts_at_the_rank_and_advances_by_the_world_size(make_step, batch):
    step = make_step(with_counter=True, device=Device(3, 8))
    pretend_other_rank(step, 0.0)
    assert int(step.random_counter.asnumpy()) == 3
    run(step, *batch(0))
    run(step, *batch(1))
    assert int(step.random_counter.asnumpy()) == 3 + 2 * 8
    assert step.random_counter.name == "random_counter"


def test_clipping_and_ema_can_be_switched_off(make_step, batch):
    step = make_step(use_global_norm=False, enable_ema=False, clip_global_norm_value=1e-3)
    assert step.ema is None and not any(name.startswith("ema.") for name in step.state().shapes())
    clipped = make_step(clip_global_norm_value=1e-3, optimizer="momentum")
    free = make_step(use_global_norm=False, clip_global_norm_value=1e-3, optimizer="momentum")
    before = weights_of(clipped)
    run(clipped, *batch(0))
    run(free, *batch(0))
    moved = [max(np.abs(a - b).max() for a, b in zip(before[1:2], weights_of(s)[1:2])) for s in (clipped, free)]
    assert moved[0] < 1e-4 < moved[1]  # the bias, which does not decay


@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_step_is_compiled_once(make_step, batch, accumulation):
    # MindSpore forgets its table of argument kinds when any compiled Cell dies, and compiles once more: let those of
    # earlier tests die now.
    gc.collect()
    step = make_step(accumulation_step=accumulation)
    for t in range(7):
        run(step, *batch(t))
        if t == 3:  # what happens between epochs
            step.set_train(False)
            step.set_train()
            for parameter in step.get_parameters():
                parameter.set_data(Tensor(parameter.asnumpy(), parameter.dtype))
    assert len(step.compile_cache) == 1


def test_state_names_are_unique_and_plain(make_step):
    names = [parameter.name for parameter in make_step(with_counter=True).get_parameters()]
    assert len(names) == len(set(names))
    assert {f"{prefix}first.weight" for prefix in ("", "ema.", "moment1.", "moment2.")} <= set(
        make_step().state().shapes()
    )
    assert {"loss_scale.value", "loss_scale.good_steps", "random_counter", "optimizer.step"} <= set(names)
    assert all(parameter.dtype in (ms.float32, ms.int32) for parameter in make_step().get_parameters())
