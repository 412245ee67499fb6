"""Sixty steps of the product's own train step against those of the authors' network in PyTorch."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor
from sklearn.datasets import load_digits

from focal.checkpoint.official import load_official_state_dict
from focal.checkpoint.train_state import collect_tensors
from focal.evaluation import EvalStep, weights_replaced
from focal.models import create_model
from focal.trainers.losses import SoftTargetCrossEntropy
from focal.trainers.optimizer import create_optimizer
from focal.trainers.train_one_step import OUTPUTS, TrainOneStep, trained_parameters
from tests.numerics.reference_cases import FOLDER, case_config, official_state
from tests.numerics.synthetic import digits_images, digits_split

STEPS, BATCH = 60, 32


def reference_config(case, **overrides):
    """The settings of a reference case, with the recipe that the reference's README states."""
    recipe = {"optimizer": "adamw", "weight_decay": 0.05, "clip_global_norm_value": 5.0, "ema_decay": 0.95}
    recipe.update(device_target="CPU", amp_level="O0")
    return case_config(case, **{**recipe, **overrides})


def build_network(config, case):
    """Synthetic weights; among equally close tokens, those that the reference chose."""
    network = create_model(config)
    load_official_state_dict(network, official_state(case, network))
    return network


def build_step(config, case, learning_rates):
    network = build_network(config, case)
    weights = trained_parameters(network)
    optimizer = create_optimizer(weights, config.optim, config.model, learning_rates)
    return TrainOneStep(network, SoftTargetCrossEntropy(), optimizer, config.step)


def digits_batches():
    train, _ = digits_split()
    targets = np.full((1797, 10), 0.1 / 10, np.float32)
    targets[np.arange(1797), load_digits().target] += 0.9
    for step in range(STEPS):
        chosen = train[(np.arange(BATCH) + BATCH * step) % 1437]
        yield digits_images(chosen), targets[chosen]


class Trained:
    """A step after training: each of its tensors is a Parameter by the name that it has in a checkpoint.

    Tests outside the repository ask `run` for these attributes.
    """

    def __init__(self, step):
        self.step, self.network, self.optimizer, self.ema = step, step.network, step.optimizer, step.ema

    def get_parameters(self):
        return [Parameter(Tensor(value), name) for name, value in collect_tensors(self.step.state(), 1).items()]


def run(config, case):
    """The step after training (`Trained`), and its outputs (STEPS, len(OUTPUTS))."""
    step = build_step(config, case, 1e-3 * np.minimum(1, (np.arange(STEPS) + 1) / 10))
    rows = [step(Tensor(images), Tensor(targets)).asnumpy() for images, targets in digits_batches()]
    return Trained(step), np.array(rows, np.float64)


def accuracy(step):
    """Top-1 on the held-out digits, of raw and of EMA weights; in PyNative mode, as two batches repay no compiling."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    held_out = digits_split()[1]
    eval_step = EvalStep(step.network)
    eval_step.set_train(False)
    images, labels = Tensor(digits_images(held_out)), Tensor(load_digits().target[held_out].astype(np.int32))
    valid = Tensor(np.ones(len(held_out), np.float32))
    raw = float(eval_step(images, labels, valid).asnumpy()[0]) / len(held_out)
    with weights_replaced(step.ema.parameters_to_average, step.ema.averages):
        return raw, float(eval_step(images, labels, valid).asnumpy()[0]) / len(held_out)


@pytest.mark.slow
@pytest.mark.parametrize("case, loss_scale, dynamic", [("nano_v1", 1, False), ("nano_v2_useconv", 2**14, True)])
def test_trajectory(case, loss_scale, dynamic):
    expected = np.load(FOLDER / f"train_{case}.npz")
    step, rows = run(
        reference_config(case, loss_scale=loss_scale, is_dynamic_loss_scale=dynamic, scale_window=20), case
    )
    loss, norm = rows[:, OUTPUTS.index("loss")], rows[:, OUTPUTS.index("grad_norm")]
    assert rows[-1, OUTPUTS.index("scale")] == (loss_scale * 4 if dynamic else loss_scale)  # doubled twice in 60 steps
    deviation = np.abs(loss / expected["loss"] - 1)
    print(f"{case}: loss deviates by {deviation[:5].max():.1e} in 5 steps, {deviation.max():.1e} in 60")
    assert deviation[:5].max() < 1e-4
    assert deviation.max() < 2e-2
    assert np.abs(norm[:5] / expected["grad_norm"][:5] - 1).max() < 1e-3

    parameters = {parameter.name: parameter.asnumpy() for parameter in step.get_parameters()}
    names = [str(name) for name in expected["names"]]
    assert set(names) == {parameter.name for parameter in step.optimizer.parameters_to_train}
    for prefix, norms in (("", expected["param_norms"]), ("ema.", expected["ema_norms"])):
        ours = np.array([np.linalg.norm(parameters[prefix + name].astype(np.float64)) for name in names])
        # small tensors (biases near zero) move by the sum of their steps: compare with that, not with themselves
        assert np.abs(ours - norms).max() < 2e-2 * np.maximum(norms, 1.0).max()
        assert np.median(np.abs(ours / norms - 1)) < 1e-3

    raw, averaged = accuracy(step)
    print(f"{case}: accuracy {raw:.4f} ({expected['acc']:.4f}), averaged {averaged:.4f} ({expected['ema_acc']:.4f})")
    assert abs(raw - expected["acc"]) < 0.03 and abs(averaged - expected["ema_acc"]) < 0.03
