"""Optimizers against their formulas in float64, and the settings of each parameter."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, ParameterTuple, Tensor, nn

from focal.trainers.optimizer import create_optimizer, layer_of, parameter_settings

NAMES = {"layers.0.blocks.0.attn.qkv.weight": (6, 4), "layers.0.blocks.0.attn.qkv.bias": (6,), "head.weight": (3, 6)}
STEPS = 12


class FromTensors(nn.Cell):
    """An update from a gradient for each of NAMES: one graph, as in the step.

    Gradients that come in a tuple would be constants of the graph, which would be compiled anew for each update.
    """

    def __init__(self, optimizer):
        super().__init__(auto_prefix=False)
        self.optimizer, self.buckets = optimizer, optimizer.buckets
        names = [parameter.name for parameter in optimizer.buckets.parameters]
        self.order = tuple(list(NAMES).index(name) for name in names)

    def construct(self, first, second, third, finite):
        gradients = (first, second, third)
        ordered = (gradients[self.order[0]], gradients[self.order[1]], gradients[self.order[2]])
        return self.optimizer(self.buckets(ordered), finite)


def make(make_config, optimizer, rates, **overrides):
    """Parameters, their optimizer, and what updates them."""
    config = make_config(optimizer=optimizer, weight_decay=0.1, **overrides)
    rng = np.random.default_rng(6)
    parameters = ParameterTuple(
        [Parameter(Tensor(rng.standard_normal(shape).astype(np.float32)), name=name) for name, shape in NAMES.items()]
    )
    made = create_optimizer(parameters, config.optim, config.model, np.asarray(rates))
    step = FromTensors(made)

    def update(gradients, finite):
        step(*map(Tensor, gradients), Tensor(finite))

    return parameters, made, update


def gradient_sequence():
    rng = np.random.default_rng(7)
    return [[rng.standard_normal(shape).astype(np.float32) for shape in NAMES.values()] for _ in range(STEPS)]


def adamw(p, g, m, v, t, lr, wd, corrected=True, b1=0.9, b2=0.999, eps=1e-8):
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
    c1, c2 = (1 - b1**t, 1 - b2**t) if corrected else (1.0, 1.0)
    return p - lr * (m / c1 / (np.sqrt(v / c2) + eps) + wd * p), m, v


def lamb(p, g, m, v, t, lr, wd, b1=0.9, b2=0.999, eps=1e-8):
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
    update = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps) + wd * p
    trust = np.linalg.norm(p) / np.linalg.norm(update) if wd else 1.0
    return p - lr * trust * update, m, v


def momentum(p, g, m, v, t, lr, wd):
    m = 0.9 * m + g
    return p - lr * (m + wd * p), m, v


FORMULAS = {
    "adamw": adamw,
    "adam_weight_decay": lambda *a: adamw(*a, corrected=False),
    "lamb": lamb,
    "momentum": momentum,
}


@pytest.mark.parametrize("name", FORMULAS)
def test_each_optimizer_follows_its_formula(make_config, name):
    rates = 0.01 * (1 + np.arange(STEPS))
    parameters, optimizer, update = make(make_config, name, rates)
    expected = [[p.asnumpy().astype(np.float64), 0.0, 0.0] for p in parameters]
    for t, gradients in enumerate(gradient_sequence(), start=1):
        update(gradients, True)
        for i, (gradient, decay) in enumerate(zip(gradients, (0.1, 0.0, 0.1))):
            expected[i] = FORMULAS[name](expected[i][0], gradient, *expected[i][1:], t, rates[t - 1], decay)
        for parameter, state in zip(parameters, expected):
            assert np.abs(parameter.asnumpy() - state[0]).max() < 1e-5 * max(1, np.abs(state[0]).max()), t
    assert int(optimizer.step.asnumpy()) == STEPS


@pytest.mark.parametrize("name", FORMULAS)
def test_a_skipped_step_changes_no_bit_and_does_not_count(make_config, name):
    parameters, optimizer, update = make(make_config, name, np.full(STEPS, 0.01))
    zeros = [np.zeros(shape, np.float32) for shape in NAMES.values()]
    gradients = gradient_sequence()

    def state():
        kept = [p for p in optimizer.get_parameters() if not p.name.startswith("schedule")]
        return {p.name: p.asnumpy().copy() for p in [*parameters, *kept]}

    for updates in (0, 3):  # before the first update, and between
        for i in range(updates):
            update(gradients[i], True)
        before = state()
        update(zeros, False)
        after = state()
        assert all((after[name] == before[name]).all() for name in before)
        assert int(optimizer.step.asnumpy()) == updates


def test_skipped_steps_leave_no_trace_in_later_ones(make_config):
    results = []
    for skips in (0, 2):
        parameters, _, update = make(make_config, "adamw", np.full(STEPS, 0.01))
        for row in gradient_sequence()[:4]:
            for _ in range(skips):
                update([np.zeros_like(gradient) for gradient in row], False)
            update(row, True)
        results.append([parameter.asnumpy() for parameter in parameters])
    assert all((a == b).all() for a, b in zip(*results))


def test_the_schedule_moves_on_and_holds_its_last_rate(make_config):
    rates = [0.1, 0.2, 0.3]
    _, optimizer, update = make(make_config, "momentum", rates)
    zeros = [np.zeros(shape, np.float32) for shape in NAMES.values()]
    seen = []
    for finite in (True, False, True, True, True):
        seen.append(float(optimizer.current_rate()))
        update(zeros, finite)
    assert seen == pytest.approx([0.1, 0.2, 0.3, 0.3, 0.3])


def test_decay_spares_biases_norms_and_position_embedding(make_config):
    shapes = {
        "absolute_pos_embed": (1, 9, 4),
        "patch_embed.proj.weight": (4, 3, 2, 2),
        "patch_embed.norm.weight": (4,),
        "layers.1.blocks.0.attn.some.bias": (4, 4),
        "head.weight": (5, 4),
    }
    parameters = [Parameter(Tensor(np.zeros(shape, np.float32)), name=name) for name, shape in shapes.items()]
    settings = parameter_settings(parameters, make_config(weight_decay=0.05).optim, (1, 1))
    assert [setting.weight_decay for setting in settings] == [0.0, 0.05, 0.0, 0.0, 0.05]
    assert all(setting.lr_factor == 1.0 for setting in settings)


@pytest.mark.parametrize(
    "name, layer",
    [
        ("absolute_pos_embed", 0),
        ("patch_embed.proj.weight", 0),
        ("layers.0.blocks.0.norm1.weight", 1),
        ("layers.0.blocks.1.norm1.weight", 2),
        ("layers.0.downsample.proj.weight", 2),
        ("layers.2.blocks.5.mlp.fc1.weight", 10),
        ("layers.2.downsample.norm.bias", 10),
        ("layers.3.blocks.1.mlp.fc1.weight", 12),
        ("norm.weight", 13),
        ("head.bias", 13),
    ],
)
def test_parameters_of_the_tiny_network_belong_to_their_layers(name, layer):
    assert layer_of(name, (2, 2, 6, 2)) == layer


def test_layer_decay_scales_the_learning_rate_of_each_layer(make_config):
    parameters, _, update = make(make_config, "momentum", [0.1], layer_decay=0.5)
    before = [parameter.asnumpy().copy() for parameter in parameters]
    update([np.ones(shape, np.float32) for shape in NAMES.values()], True)
    top = 1 + 1 + 2 + 1 + 1  # blocks of the test network, and the head above
    for name, parameter, old in zip(NAMES, parameters, before):
        factor = 0.5 ** (top - layer_of(name, (1, 1, 2, 1)))
        decay = 0.0 if name.endswith("bias") else 0.1
        assert np.allclose(parameter.asnumpy(), old - 0.1 * factor * (1 + decay * old), atol=1e-6)


def test_moments_are_named_after_their_parameter(make_config):
    _, optimizer, _ = make(make_config, "adamw", [0.1])
    names = {name for buffer in optimizer.buffers() for name in buffer.shapes}
    assert names == {f"{moment}.{name}" for moment in ("moment1", "moment2") for name in NAMES}
    assert optimizer.step.dtype == ms.int32
