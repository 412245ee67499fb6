"""Which attention a job takes: verdicts of the comparison, refusals by name, the line in the log."""

import logging

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from focal.config import ConfigError, load_config
from focal.distributed import chip
from focal.distributed.device import Device
from focal.errors import UserError
from focal.evaluation import EvalStep
from focal.models import attention_choice, create_model, flash_attention
from focal.models.attention_choice import choose_attention
from focal.models.flash_attention import FlashAttention
from focal.models.focal_attention import FocalAttention
from focal.models.inference import prepare_for_evaluation
from focal.models.precision import apply_precision
from focal.trainers.setup import build_network, build_train_step
from tests.unit.models.flash_stand_in import stand_in

SMALL = {"arch": "focalv2_mini", "embed_dim": 32, "depths": [1, 1], "num_heads": [1, 2], "num_classes": 4,
         "image_size": 32, "window_size": 4, "focal_stages": [0, 1], "focal_levels": [2, 2], "focal_windows": [3, 1],
         "expand_sizes": [0, 0], "focal_topK": 9, "device_target": "CPU", "amp_level": "O1", "batch_size": 4,
         "drop_path_rate": 0.0}  # fmt: skip


@pytest.fixture
def on_a2(monkeypatch):
    """Makes this process believe that it has an Atlas A2, with a stand-in of the operator."""

    def replace(**settings):
        monkeypatch.setattr(attention_choice, "has_flash_attention", lambda: True)
        for name, maker in vars(stand_in(**settings)).items():
            monkeypatch.setattr(flash_attention, name, maker)

    return replace


def network_of(**overrides):
    config = load_config({**SMALL, **overrides})
    network = create_model(config)
    apply_precision(network, config.step.amp_level)
    return network, config


def attentions(network):
    return [cell for _, cell in network.cells_and_names() if isinstance(cell, FocalAttention)]


def takes_flash(network):
    return [attention.flash is not None for attention in attentions(network)]


def line(caplog):
    """What the log says about the attention; it must be one line."""
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("attention: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.fixture(autouse=True)
def info_level(caplog):
    caplog.set_level(logging.INFO, logger="focal")


# ---- the comparison ----


@pytest.mark.parametrize("version", [1, 2])
def test_an_operator_that_agrees_is_taken_with_its_gradient_of_the_bias(version, on_a2, caplog, pynative_mode):
    on_a2()
    arch = "focal_mini" if version == 1 else "focalv2_mini"
    network, config = network_of(arch=arch, use_shift=version == 1, depths=[2, 1], image_size=64)
    names = [parameter.name for parameter in network.get_parameters()]
    choose_attention(network, config.step, training=True)
    assert all(takes_flash(network)) and len(takes_flash(network)) == 3
    assert all(attention.flash.operator_gives_bias_gradient for attention in attentions(network))
    assert line(caplog).startswith(
        "attention: flash; its output and gradients differ from those of products by at most"
    )
    assert float(line(caplog).split()[-1]) < 0.002
    assert [parameter.name for parameter in network.get_parameters()] == names


def test_a_missing_gradient_of_the_bias_is_found_and_left_to_the_products(on_a2, caplog, pynative_mode):
    """CANN's public kernels take the address of that gradient, and do not write to it."""
    on_a2(backward={"bias_gradient": 0.0})
    network, config = network_of()
    choose_attention(network, config.step, training=True)
    assert all(takes_flash(network))
    assert not any(attention.flash.operator_gives_bias_gradient for attention in attentions(network))
    assert line(caplog).endswith("; its gradient of the bias is wrong, so products compute that")


WRONG = {
    "output": ({"forward": {"scale": 0.9}}, "output by 0."),
    "gradients of queries and keys": ({"backward": {"scale": 0.9}}, "gradient of the queries by 0."),
    "not a number": ({"forward": {"scale": float("nan")}}, "output by nan"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_operator_that_differs_is_not_taken(name, on_a2, caplog, pynative_mode):
    settings, finding = WRONG[name]
    on_a2(**settings)
    network, config = network_of()
    choose_attention(network, config.step, training=True)
    assert not any(takes_flash(network))
    assert line(caplog).startswith("attention: products; flash differs from products: ") and finding in line(caplog)

    _, config = network_of()
    explicit = load_config({**SMALL, "attention": "flash", "device_target": "Ascend"})
    with pytest.raises(UserError, match="attention: flash cannot be used: flash differs from products"):
        choose_attention(network, explicit.step, training=True)


def test_gradients_that_nobody_needs_are_not_compared(on_a2, caplog, pynative_mode):
    on_a2(backward={"scale": 0.5})
    network, config = network_of()
    choose_attention(network, config.step, training=False)
    assert all(takes_flash(network))
    assert line(caplog).startswith("attention: flash; its output differs from those of products by at most")


# ---- what rules flash out ----


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"num_heads": [4, 8]}, "heads of 8 channels are not a multiple of 16, as flash demands"),
        ({"attn_drop_rate": 0.1}, "flash has no attn_drop_rate, which is 0.1"),
        ({"image_size": 288, "focal_topK": 4}, "1 heads in 324 windows are more than the 256 heads of flash"),
        ({"amp_level": "O0"}, "flash has no float32, which amp_level O0 asks for"),
    ],
)
def test_what_flash_cannot_do_is_left_to_the_products_or_refused(overrides, reason, on_a2, caplog, pynative_mode):
    on_a2()
    network, config = network_of(**overrides)
    choose_attention(network, config.step, training=False)
    assert not takes_flash(network)[0]
    assert line(caplog).endswith(reason)
    keys = {"attention": "flash", "device_target": "Ascend", "amp_level": "O1"}
    step = load_config({**SMALL, **keys}).step
    if "amp_level" not in overrides:  # refused with the configuration
        with pytest.raises(UserError, match=f"attention: flash cannot be used: .*{reason}; use auto or products"):
            choose_attention(network, step, training=False)


def test_blocks_that_flash_cannot_compute_use_products_beside_others_that_it_can(on_a2, caplog, pynative_mode):
    on_a2()
    network, config = network_of(num_heads=[4, 2])
    choose_attention(network, config.step, training=False)
    assert takes_flash(network) == [False, True]
    assert line(caplog).startswith("attention: flash in 1 of 2 blocks; ")


@pytest.mark.parametrize("name", ["ascend910", "ascend310p", "ascend910b", "ascend910_93"])
def test_flash_is_for_atlas_a2_and_later(name, monkeypatch):
    monkeypatch.setattr(chip, "_on_ascend", lambda: True)
    monkeypatch.setattr(chip, "ascend_chip", lambda: name)
    assert chip.has_flash_attention() == (name in ("ascend910b", "ascend910_93"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"device_target": "CPU"}, "attention: flash requires device_target Ascend, not CPU"),
        ({"amp_level": "O0"}, "attention: flash has no float32, which amp_level O0 asks for"),
        ({"attn_drop_rate": 0.1}, "attention: flash has no attn_drop_rate, which is 0.1"),
    ],
)
def test_impossible_settings_are_refused_with_the_configuration(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config({**SMALL, "device_target": "Ascend", "attention": "flash", **overrides})


# ---- the key, as train.py and eval.py use it ----


@pytest.mark.parametrize(
    ("attention", "said"), [("auto", "products; flash exists on Atlas A2 (910B) and later only"),
                            ("products", "products, as configured")],
)  # fmt: skip
def test_a_cpu_computes_products(attention, said, caplog):
    network = build_network(load_config({**SMALL, "attention": attention}))
    assert not any(takes_flash(network))
    assert line(caplog) == f"attention: {said}"


def test_products_are_taken_where_flash_could_be_if_the_key_says_so(on_a2):
    on_a2()
    assert not any(takes_flash(build_network(load_config({**SMALL, "attention": "products"}))))


def test_a_training_step_with_flash_has_the_loss_and_gradients_of_one_with_products(on_a2, pynative_mode):
    """In float16, every trained tensor, the bias's parameters included.

    In graph mode the gradients are compared in test_flash_attention.py, and tests/ascend compiles the whole step.
    """
    on_a2(backward={"bias_gradient": 0.0})
    rng = np.random.default_rng(0)
    images = Tensor(rng.standard_normal((4, 3, 32, 32)).astype(np.float32))
    targets = Tensor(np.eye(4, dtype=np.float32))
    losses, gradients = [], []
    for attention in ("auto", "products"):
        config = load_config({**SMALL, "attention": attention})
        network = build_network(config)
        assert all(takes_flash(network)) == (attention == "auto")
        step = build_train_step(config, network, 10, Device())
        (_, loss), of_step = step.value_and_grad(images, targets, None)
        losses.append(float(loss))
        gradients.append({p.name: g.asnumpy() for p, g in zip(step.buckets.parameters, of_step)})
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    assert any("coord2rpb" in name for name in gradients[0])
    for name, gradient in gradients[1].items():
        assert np.linalg.norm(gradients[0][name] - gradient) < 0.02 * np.linalg.norm(gradient) + 1e-4, name


def test_an_evaluation_with_flash_gives_the_sums_of_one_with_products(on_a2, pynative_mode):
    on_a2()
    rng = np.random.default_rng(0)
    images = Tensor(rng.standard_normal((4, 3, 32, 32)).astype(np.float32))
    sums = []
    for attention in ("auto", "products"):
        config = load_config({**SMALL, "attention": attention})
        network = create_model(config)
        prepare_for_evaluation(network, config.step)
        for cell in attentions(network):
            assert isinstance(cell.flash, FlashAttention) == (attention == "auto")
            assert cell.flash is None or cell.flash.constant_shift.dtype == ms.float16
        step = EvalStep(network).set_train(False)
        sums.append(step(images, Tensor([0, 1, 2, 3], ms.int32), Tensor(np.ones(4, np.float32))).asnumpy())
    np.testing.assert_allclose(sums[0], sums[1], rtol=1e-3)


def test_other_key_indices_reach_flash(on_a2, pynative_mode):
    """A checkpoint may bring other ties than the network's own, after the choice."""
    on_a2()
    network, config = network_of()
    choose_attention(network, config.step, training=False)
    builder, attention = network.layers[0].builder, network.layers[0].blocks[0].attn
    before = attention.flash
    reversed_map = [63 - level if number == 0 else level for number, level in enumerate(builder.own_indices())]
    builder.use_indices(attention, reversed_map)
    assert attention.flash is not before and attention.flash.gather_tokens is attention.tables.gather_tokens
