"""A toy network whose every part can be redone in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from src.config import load_config
from src.trainers.losses import SoftTargetCrossEntropy
from src.trainers.optimizer import create_optimizer
from src.trainers.train_one_step import Ranks, TrainOneStep, trained_parameters
from tests.unit.trainers.toy_network import ToyNetwork


@pytest.fixture
def make_config():
    """Config of a small network of version 2, with overrides."""

    def make(**overrides):
        base = {"arch": "focalv2_nano", "embed_dim": 32, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8]}
        base.update(device_target="CPU", amp_level="O0", batch_size=4, epochs=10, num_classes=4, image_size=64)
        return load_config({**base, **overrides})

    return make


@pytest.fixture
def toy_network():
    return ToyNetwork


def toy_batch(seed: int, batch: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """inputs (B, 6), targets (B, 4) whose rows sum to 1."""
    rng = np.random.default_rng(seed)
    targets = rng.random((batch, 4)).astype(np.float32)
    return rng.standard_normal((batch, 6)).astype(np.float32), targets / targets.sum(1, keepdims=True)


@pytest.fixture
def batch():
    return toy_batch


def toy_gradients(weights: list[np.ndarray], inputs: np.ndarray, targets: np.ndarray) -> tuple[float, list[np.ndarray]]:
    """Loss and gradients of ToyNetwork with soft-target cross-entropy, in float64."""
    first, bias, second = (np.asarray(weight, np.float64) for weight in weights)
    hidden = np.tanh(inputs.astype(np.float64) @ first + bias)
    logits = hidden @ second
    shifted = logits - logits.max(1, keepdims=True)
    log_probability = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    loss = -(targets * log_probability).sum(1).mean()
    d_logits = (np.exp(log_probability) * targets.sum(1, keepdims=True) - targets) / len(inputs)
    d_hidden = d_logits @ second.T * (1 - hidden**2)
    return loss, [inputs.T @ d_hidden, d_hidden.sum(0), hidden.T @ d_logits]


@pytest.fixture
def numpy_gradients():
    return toy_gradients


@pytest.fixture
def make_step(toy_network):
    """A whole training step of the toy network."""

    def make(config, seed=0):
        network = toy_network(seed, True)
        weights = trained_parameters(network)
        optimizer = create_optimizer(weights, config.optim, config.model, np.full(50, 0.05))
        return TrainOneStep(network, SoftTargetCrossEntropy(), optimizer, config.step, Ranks())

    return make
