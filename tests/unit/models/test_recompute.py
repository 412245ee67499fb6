"""Recomputation trades time for memory, never results."""

import mindspore as ms
import numpy as np
from mindspore import ops

from focal.data.transforms.drop_path import draw_drop_path
from focal.models import create_model
from tests.numerics.reference_cases import case_config, case_input


def loss_and_gradients(recompute):
    rates = {"drop_path_rate": 0.3, "drop_rate": 0.1, "attn_drop_rate": 0.1}
    config = case_config("nano_v2", recompute=recompute, **rates)
    network = create_model(config)
    network.set_train(True)
    images = case_input("nano_v2")
    factors = draw_drop_path(config.model.drop_path_rates, len(images), np.random.default_rng(0))
    assert (factors == 0).any()

    def loss(images, drop_path):
        return ops.logsumexp(network(images, drop_path), -1).mean()

    differentiated = ms.value_and_grad(loss, None, network.trainable_params())
    value, gradients = differentiated(ms.Tensor(images), ms.Tensor(factors))
    return [value.asnumpy(), *(gradient.asnumpy() for gradient in gradients)]


def test_loss_and_gradients_stay_the_same_with_drop_path_and_dropout():
    for recomputed, plain in zip(loss_and_gradients(True), loss_and_gradients(False)):
        np.testing.assert_allclose(recomputed, plain, rtol=1e-5, atol=1e-7)
