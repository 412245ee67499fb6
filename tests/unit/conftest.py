"""For all unit tests: a toy network that NumPy can redo, a folder of small images, a clean logger."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from focal.config import load_config
from focal.distributed.device import Device
from focal.trainers.losses import SoftTargetCrossEntropy
from focal.trainers.optimizer import create_optimizer
from focal.trainers.train_one_step import TrainOneStep, trained_parameters
from tests.unit.toy_network import ToyNetwork


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
        return TrainOneStep(network, SoftTargetCrossEntropy(), optimizer, config.step, Device())

    return make


def write_images(folder: Path, counts: dict[str, int], size: tuple[int, int] = (48, 40), seed: int = 0) -> None:
    """JPEGs of smooth random colours, `counts` per class; each differs from all others."""
    rng = np.random.default_rng(seed)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
            image.save(folder / name / f"{number:03d}.jpg", quality=95)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ with 22 images and val/ with 13, of classes a, b, c."""
    root = tmp_path_factory.mktemp("images")
    write_images(root / "train", {"a": 8, "b": 8, "c": 6})
    write_images(root / "val", {"a": 5, "b": 4, "c": 4}, seed=1)
    return root


@pytest.fixture(autouse=True)
def restored_logger() -> Iterator[None]:
    """Handlers, level and propagation of `focal` as they were."""
    logger = logging.getLogger("focal")
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    logger.propagate = True
    logger.setLevel(logging.INFO)
    yield
    for handler in set(logger.handlers) - set(handlers):
        handler.close()
    logger.handlers, logger.level, logger.propagate = handlers, level, propagate
