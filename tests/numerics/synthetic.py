"""Deterministic weights and inputs behind the reference figures in this folder (NumPy only).

A learnable tensor's value is a function of its official parameter name and its shape alone, so no
weight file has to be shipped: whoever can list the official names and shapes can rebuild the weights.
"""

import zlib

import numpy as np


def _rng(name: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))


def tensor_value(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 value of the learnable tensor `name` (official name, official shape)."""
    n = _rng(name).standard_normal(shape).astype(np.float32)
    leaf = name.split(".")[-1]
    if len(shape) >= 2 and leaf == "weight":
        if ".pool_layers." in name and len(shape) == 2:  # window pooling, Linear(window**2, 1)
            return (1 / shape[1] + 0.02 * n).astype(np.float32)
        return (n / np.sqrt(int(np.prod(shape[1:])))).astype(np.float32)
    if leaf == "weight":  # norm scales
        return (1 + 0.1 * n).astype(np.float32)
    if leaf == "bias":
        return (0.1 * n).astype(np.float32)
    return (0.2 * n).astype(np.float32)  # bias tables, layer scales, absolute_pos_embed


def input_batch(case: str, batch: int, image_size: int) -> np.ndarray:
    """float32 (batch, 3, image_size, image_size): the network input of a forward case."""
    return _rng(f"{case}/{batch}/{image_size}").standard_normal((batch, 3, image_size, image_size)).astype(np.float32)


def digits_split() -> tuple[np.ndarray, np.ndarray]:
    """Indices into sklearn.datasets.load_digits(): 1437 for training, 360 held out."""
    order = _rng("order").permutation(1797)
    return order[:1437], order[1437:]


def digits_images(indices: np.ndarray) -> np.ndarray:
    """float32 (n, 3, 64, 64) in [-1, 1]: each 8x8 digit blown up by pixel repetition."""
    from sklearn.datasets import load_digits

    x = np.kron(load_digits().images[indices], np.ones((1, 8, 8))) / 16.0
    return np.repeat(((x - 0.5) / 0.5).astype(np.float32)[:, None], 3, axis=1)
