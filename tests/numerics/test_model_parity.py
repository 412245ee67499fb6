"""Our networks against the authors' figures: logits, stages, gradients, names, shapes, counts."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import ops

from focal.checkpoint.official import learnable_parameters, load_official_state_dict, official_buffers
from focal.models import create_model, flash_attention
from focal.models.macs import official_macs
from tests.numerics.reference_cases import (
    LISTED,
    WITH_FIGURES,
    case_config,
    case_input,
    figures,
    listing,
    loaded_network,
    official_state,
)
from tests.unit.models.flash_stand_in import stand_in

NANO = [name for name in WITH_FIGURES if name.startswith("nano")]
MORE = [name for name in WITH_FIGURES if name.startswith(("v1_", "v2_"))]  # options that the nano cases leave out


@pytest.mark.parametrize("name", WITH_FIGURES)
def test_logits_and_stages(name, pynative_mode):
    network, images = loaded_network(name), ms.Tensor(case_input(name))
    expected = figures(name)
    np.testing.assert_allclose(network(images).asnumpy(), expected["logits"], atol=1e-4, rtol=0)
    for stage, output in enumerate(network.forward_stages(images)):
        output = output.asnumpy()
        assert output.shape == tuple(expected[f"stage{stage}_shape"])
        np.testing.assert_allclose(output.reshape(-1)[:32], expected[f"stage{stage}_head"], atol=1e-4, rtol=0)
        np.testing.assert_allclose(output.mean(dtype=np.float64), expected[f"stage{stage}_mean"], atol=1e-4, rtol=0)
        rms = np.sqrt((output.astype(np.float64) ** 2).mean())
        np.testing.assert_allclose(rms, expected[f"stage{stage}_rms"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", [*NANO, *MORE])
def test_gradient_norms_in_pynative_mode(name, pynative_mode):
    check_gradient_norms(name)


@pytest.mark.parametrize("name", ["nano_v1_shift", "nano_v2_levels3"])
def test_gradient_norms_in_graph_mode(name):
    """The same Cells and the same gradients of their own, compiled, as the trajectories compile two other cases."""
    check_gradient_norms(name)


@pytest.mark.parametrize("name", ["nano_v1_shift", "nano_v2_levels3", "v2_shift"])
@pytest.mark.parametrize("operator_gives_bias_gradient", [True, False])
def test_flash_attention_has_the_authors_figures(name, operator_gives_bias_gradient, monkeypatch, pynative_mode):
    """With a stand-in of MindSpore's operator in float32: folding groups into heads and the gathers of whole tokens."""
    for operator, maker in vars(stand_in()).items():
        monkeypatch.setattr(flash_attention, operator, maker)

    def flash_network():
        network = loaded_network(name)
        for stage in network.layers:
            for block in stage.blocks:
                block.attn.use_flash(operator_gives_bias_gradient)
        return network

    logits = flash_network()(ms.Tensor(case_input(name))).asnumpy()
    np.testing.assert_allclose(logits, figures(name)["logits"], atol=1e-4, rtol=0)
    check_gradient_norms(name, flash_network())


def check_gradient_norms(name, network=None):
    network, images = network or loaded_network(name), ms.Tensor(case_input(name))
    expected = figures(name)
    parameters = network.trainable_params()

    def loss(batch):
        return ops.logsumexp(network(batch), -1).mean()

    value, gradients = ms.value_and_grad(loss, None, parameters)(images)
    np.testing.assert_allclose(value.asnumpy(), expected["loss"], rtol=1e-5)
    ours = {p.name: np.linalg.norm(g.asnumpy().astype(np.float64)) for p, g in zip(parameters, gradients)}
    theirs = dict(zip(expected["grad_names"], expected["grad_norms"]))
    assert set(ours) == set(theirs)
    for entry, norm in theirs.items():
        # Norms of 1e-8 are rounding errors of a true zero: a bias that shifts all logits of a softmax alike.
        np.testing.assert_allclose(ours[entry], norm, rtol=1e-3, atol=1e-7, err_msg=entry)


@pytest.mark.parametrize("name", LISTED)
def test_names_shapes_and_counts(name):
    network = create_model(case_config(name))
    entries = listing(name)["state_dict"]
    ours = {entry: list(p.shape) for entry, p in learnable_parameters(network).items()}
    assert ours == {entry: shape for entry, (shape, _, kind) in entries.items() if kind == "param"}
    buffers = {entry: (list(value.shape), str(value.dtype)) for entry, value in official_buffers(network).items()}
    assert buffers == {entry: (shape, dtype) for entry, (shape, dtype, kind) in entries.items() if kind == "buffer"}
    count = sum(int(np.prod(p.shape)) for p in network.trainable_params())
    assert count == sum(int(np.prod(shape)) for shape, _, kind in entries.values() if kind == "param")
    if name in WITH_FIGURES:
        assert count == figures(name)["n_params"]


@pytest.mark.parametrize("name", ["v1_shift", "v2_shift", "v1_levels4"])
def test_buffers_equal_the_authors(name):
    network = loaded_network(name)
    expected = {key[len("buffer:") :]: value for key, value in figures(name).items() if key.startswith("buffer:")}
    ours = official_buffers(network)
    assert set(ours) == set(expected)
    for entry, value in expected.items():
        np.testing.assert_array_equal(ours[entry], value, err_msg=entry)


@pytest.mark.parametrize("name", WITH_FIGURES)
def test_official_macs_are_the_authors(name):
    assert official_macs(case_config(name).model) == int(figures(name)["flops"])


@pytest.mark.slow
@pytest.mark.parametrize("version", ["focal", "focalv2"])
def test_larger_models_run(version, pynative_mode):
    """No figures exist for these; they must run, and depend on the image. The small ones are as deep and narrower."""
    network = loaded_network(f"{version}_base_useconv_patch4_window7_224")
    images = np.random.default_rng(0).standard_normal((2, 3, 224, 224)).astype(np.float32)
    logits = network(ms.Tensor(images)).asnumpy()
    assert logits.shape == (2, 1000) and np.isfinite(logits).all()
    assert np.abs(logits[0] - logits[1]).max() > 1e-3


@pytest.mark.parametrize("case", ["nano_v1", "nano_v2"])
def test_state_dict_errors_name_every_entry(case):
    network = create_model(case_config(case))
    state = official_state(case, network)
    before = network.head.weight.asnumpy().copy()
    state["head.bias"] = np.zeros(7, np.float32)
    state["extra.weight"] = np.zeros(1, np.float32)
    del state["norm.weight"]
    with pytest.raises(ValueError) as error:
        load_official_state_dict(network, state)
    message = str(error.value)
    assert "missing norm.weight" in message and "unexpected extra.weight" in message
    assert "misshaped head.bias: (7,) instead of (10,)" in message
    np.testing.assert_array_equal(network.head.weight.asnumpy(), before)


def test_other_key_indices_change_the_logits_even_after_compilation():
    """Version 2's stored ties are honoured, also by a network that has run before."""
    name = "nano_v2"
    network = create_model(case_config(name))
    state = official_state(name, network)
    own = {entry: value for entry, value in state.items() if "topk" not in entry}
    images = ms.Tensor(case_input(name))
    load_official_state_dict(network, own)  # our own choice among ties
    network.set_train(False)
    ours = network(images).asnumpy()
    assert np.abs(ours - figures(name)["logits"]).max() > 1e-3
    load_official_state_dict(network, state)
    np.testing.assert_allclose(network(images).asnumpy(), figures(name)["logits"], atol=1e-4, rtol=0)


def test_damaged_key_indices_are_refused():
    network = create_model(case_config("nano_v2"))
    state = official_state("nano_v2", network)
    entry = "layers.0.blocks.0.attn.topk_cloest_indice_0"
    for wrong in (state[entry] * 0, state[entry] + 1000):
        with pytest.raises(ValueError, match="topk_cloest_indice_0: not 16 different tokens"):
            load_official_state_dict(network, {**state, entry: wrong})
