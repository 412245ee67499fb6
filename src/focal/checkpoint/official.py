"""Loads the authors' state dicts into a network and makes them from one.

Parameter names are the same; theirs also contain buffers. Of these only version 2's `topk_cloest_indice_k` (spelt
so upstream) carry information: which of several equally distant tokens torch.topk kept. They are taken over; the others
follow from the settings and are checked by shape.
"""

from __future__ import annotations

import logging
import math
import re
from typing import Iterator, Mapping

import numpy as np
from mindspore import Parameter, Tensor, nn

from focal.errors import UserError
from focal.models.focal_attention import AttentionBuilder, FocalAttention
from focal.models.focal_keys import are_closest, key_grid
from focal.models.layers import RANDOM_COUNTER
from focal.models.official_buffers import block_buffers

logger = logging.getLogger("focal")

KEY_INDICES = ".topk_cloest_indice_"  # version 2: which of equally close tokens are keys; for one image size
_BUFFER = re.compile(
    r"\.(attn_mask|relative_position_index(_\d+)?|valid_ind_(rolled|unfold_\d+)|window_coords"
    r"|topk_cloest_(indice|coords)_\d+)$"
)


def is_buffer(name: str) -> bool:
    """Whether this is the official name of a buffer, in a network of any depth and size."""
    return _BUFFER.search(name) is not None


def learnable_parameters(network: nn.Cell) -> dict[str, Parameter]:
    """Parameters by official name, without counters and key indices; frozen parameters are included.

    Works also for a network inside another Cell, whose prefix MindSpore puts before every `Parameter.name`.
    """
    return {
        name: parameter
        for name, parameter in network.official_parameters.items()
        if name != RANDOM_COUNTER and KEY_INDICES not in name
    }


def attention_heads(network: nn.Cell) -> dict[str, int]:
    """Number of heads by the official name of each attention."""
    return {f"{name}.attn": attention.heads for _, name, _, attention in _blocks(network)}


def load_official_state_dict(network: nn.Cell, state: Mapping[str, np.ndarray]) -> None:
    """Load an official state dict, buffers included, into a network from `create_model`.

    Args:
        network: the network to fill.
        state: arrays by official name. Buffers may be left out; version 2 then keeps its own choice among ties.

    Raises:
        UserError: names every missing, unexpected and misshaped entry; nothing is loaded then.
    """
    learnable, buffers = learnable_parameters(network), official_buffers(network)
    shapes = {name: tuple(parameter.shape) for name, parameter in learnable.items()}
    shapes.update({name: value.shape for name, value in buffers.items()})
    problems = [f"missing {name}" for name in learnable if name not in state]
    problems += [f"unexpected {name}" for name in state if name not in shapes]
    problems += [
        f"misshaped {name}: {tuple(np.shape(state[name]))} instead of {shape}"
        for name, shape in shapes.items()
        if name in state and tuple(np.shape(state[name])) != shape
    ]
    if problems:
        raise UserError(f"state dict does not fit the network: {'; '.join(problems)}")
    indices = {name: np.asarray(value) for name, value in state.items() if KEY_INDICES in name}
    absent = [name for name in buffers if KEY_INDICES in name and name not in indices]
    if absent:
        logger.warning(
            "the state dict lacks %s (%d in all): this program chooses among equally close tokens itself",
            absent[0],
            len(absent),
        )
    set_key_indices(network, indices)
    for name, parameter in learnable.items():
        parameter.set_data(Tensor(np.asarray(state[name], np.float32), parameter.dtype))


def official_state_dict(network: nn.Cell) -> dict[str, np.ndarray]:
    """All entries of the authors' state dict for this network, buffers included, as float32 and int64 arrays."""
    state = {name: parameter.asnumpy().astype(np.float32) for name, parameter in learnable_parameters(network).items()}
    return {**state, **official_buffers(network)}


def key_indices_of_other_maps(network: nn.Cell, weights: Mapping[str, np.ndarray]) -> list[str]:
    """Names of version 2's key indices among `weights` that are not the closest tokens of the network's own maps.

    Windows that grow with the image leave the number of windows and of keys as it is, so that the shape alone does not
    tell for which map indices were chosen.
    """
    foreign = []
    for builder, block, _, attention in _blocks(network):
        for level, parameter in enumerate(attention.key_indices):
            name = f"{block}.attn{KEY_INDICES}{level}"
            if name not in weights:
                continue
            indices = weights[name].astype(np.int64)
            as_many = indices.shape == tuple(parameter.shape)
            if not as_many or not (_repeats(indices) or are_closest(builder.stage.map, level, indices)):
                foreign.append(name)
    return foreign


def _repeats(indices: np.ndarray) -> bool:
    """Whether a window (row) has the same key twice, as no map would have it: a damaged file."""
    return bool((np.diff(np.sort(indices, axis=1), axis=1) == 0).any())


def set_key_indices(network: nn.Cell, indices: Mapping[str, np.ndarray]) -> None:
    """Take over version 2's key indices, by official name, and rebuild the tables made from them.

    Levels that are not given keep the indices in the network's parameters. An empty mapping therefore brings the tables
    up to date after a checkpoint has overwritten those parameters.

    Raises:
        UserError: indices are not different tokens of the map; nothing has changed then.
    """
    checked = []
    for builder, block, _, attention in _blocks(network):
        if not attention.key_indices:  # version 1
            continue
        levels = []
        for level, parameter in enumerate(attention.key_indices):
            name = f"{block}.attn{KEY_INDICES}{level}"
            value = np.asarray(indices.get(name, parameter.asnumpy())).astype(np.int64)  # (windows, keys)
            tokens = math.prod(key_grid(builder.stage.map, level))
            if _repeats(value) or value.min() < 0 or value.max() >= tokens:
                raise UserError(
                    f"{name}: not {value.shape[1]} different tokens of {tokens} for each window; the file is damaged "
                    "or belongs to another image size"
                )
            levels.append(value)
        checked.append((builder, attention, levels))
    for builder, attention, levels in checked:
        builder.use_indices(attention, levels)
    network.compile_cache.clear()  # the tables are constants of the compiled graph


def official_buffers(network: nn.Cell) -> dict[str, np.ndarray]:
    """The buffers of the authors' modules, by official name."""
    return {
        f"{name}.{leaf}": value
        for builder, name, index, attention in _blocks(network)
        for leaf, value in block_buffers(builder.stage, index, attention).items()
    }


def _blocks(network: nn.Cell) -> Iterator[tuple[AttentionBuilder, str, int, FocalAttention]]:
    """Builder, official name, index within its stage, and attention of each block."""
    for stage, layer in enumerate(network.layers):
        for index, block in enumerate(layer.blocks):
            yield layer.builder, f"layers.{stage}.blocks.{index}", index, block.attn
