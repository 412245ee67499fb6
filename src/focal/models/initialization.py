"""Initial values of all parameters, as in the authors' PyTorch code.

Each value depends on (seed, parameter name) alone: it is equal on all ranks and whatever is built around the network.
"""

from __future__ import annotations

import math
import zlib
from typing import Optional

import numpy as np
from mindspore import Tensor, nn


def initialize(network: nn.Cell, seed: int) -> None:
    """Set every parameter of `network` in place, by its official name.

    - Dense weights and the tables that upstream draws: normal with standard deviation 0.02 (timm's trunc_normal_ cuts
      at the absolute values -2 and 2, a hundred standard deviations away); biases zero; norm scales one.
    - fc pooling starts as the mean of its window. (Upstream sets this too, but its `apply(_init_weights)` then draws
      these weights like any other nn.Linear; the comment beside it and the paper intend the mean.)
    - Convolutions, pooling by convolution included: PyTorch's default, uniform within 1 / sqrt(fan_in).
    - The table of a window's own positions starts at zero; layer scales keep `layerscale_value`.
    """
    shapes = {parameter.name: parameter.shape for parameter in network.get_parameters()}
    for parameter in network.get_parameters():
        weight_shape = shapes.get(parameter.name.rsplit(".", 1)[0] + ".weight", ())
        value = _initial_value(parameter.name, parameter.shape, weight_shape, _generator(seed, parameter.name))
        if value is not None:
            parameter.set_data(Tensor(value.astype(np.float32)))


def _generator(seed: int, name: str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, zlib.crc32(name.encode())]))


def _initial_value(
    name: str, shape: tuple[int, ...], weight_shape: tuple[int, ...], random: np.random.Generator
) -> Optional[np.ndarray]:
    """Value of one parameter; None keeps it as it was built (zeros, layer scales, counters and key indices)."""
    leaf = name.rsplit(".", 1)[-1]
    if "relative_position_bias_table_to_" in name or name == "absolute_pos_embed":
        return random.normal(0.0, 0.02, shape)
    if len(weight_shape) == 4 and leaf in ("weight", "bias"):
        bound = 1 / math.sqrt(np.prod(weight_shape[1:]))
        return random.uniform(-bound, bound, shape)
    if leaf != "weight":
        return None
    if ".pool_layers." in name:
        return np.full(shape, 1 / shape[1])
    return np.ones(shape) if len(shape) == 1 else random.normal(0.0, 0.02, shape)
