"""What one query attends to: its keys on the map, their attention weights, and Grad-CAM of a class.

All of it is computed beside the network, from its tables, projections and biases; the network itself is unchanged.
Places are (row, column) on the stage's map of tokens.

Shape legend: h heads; d channels of a head; K keys of a query, all focal levels together; T tokens that can be keys (N
of the map, then the pooled ones).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from focal.errors import UserError
from focal.models.focal_attention import AttentionBuilder
from focal.models.focal_keys import KeyTable, pooling_table
from focal.models.focal_transformer import FocalTransformer
from focal.models.stages import StageSettings


@dataclass(frozen=True)
class QueryKeys:
    """The keys of one query token.

    Attributes:
        query: place of the query.
        window: (n, 2) places of its window.
        keys: (K,) indices into the T tokens.
        levels: (K,) focal level of each key; 0 is the finest.
        hidden: (K,) True for keys that the query must not see.
        places: for each key the places (n, 2) that it stands for: one token, or those pooled into it.
    """

    query: tuple[int, int]
    window: np.ndarray
    keys: np.ndarray
    levels: np.ndarray
    hidden: np.ndarray
    places: tuple[np.ndarray, ...]


def key_table(stage: StageSettings, block: int) -> KeyTable:
    """The keys of every window of a block, in a network that has not loaded others from a checkpoint."""
    return AttentionBuilder(stage).key_table(block)


def query_keys(stage: StageSettings, block: int, query: tuple[int, int], table: KeyTable) -> QueryKeys:
    """The keys of the query at a place of the stage's map.

    Raises:
        UserError: the place is not on the map.
    """
    stage_map = stage.map
    if not (0 <= query[0] < stage_map.height and 0 <= query[1] < stage_map.width):
        raise UserError(f"query: {query} is not on the map of {stage_map.height} x {stage_map.width} tokens")
    place = _places_in_block(stage, block)  # (N, 2)
    position = int(np.flatnonzero((place == query).all(1))[0])
    group, number = (int(found[0]) for found in np.nonzero(table.queries == position))
    keys = table.keys[group]
    starts = np.cumsum([0, *stage.tokens])
    levels = np.searchsorted(starts, keys, side="right") - 1
    pooled = {level: place[pooling_table(stage_map, level)] for level in range(1, stage.levels)}  # (side^2, P, 2)
    places = []
    for key, level in zip(keys.tolist(), levels.tolist()):
        covered = place[[key]] if level == 0 else pooled[level][:, key - starts[level]]
        places.append(covered[(covered >= 0).all(1)])
    window = place[position % stage_map.num_windows :: stage_map.num_windows]
    hidden = table.bias_index[group, number] == table.hidden_column
    return QueryKeys(query, window[(window >= 0).all(1)], keys, levels, hidden, tuple(places))


def _places_in_block(stage: StageSettings, block: int) -> np.ndarray:
    """(N, 2): the place on the map of the token at each stage position of a block, after its shift; -1 for padding."""
    raster = stage.map.raster_to_stage()
    if stage.shift(block):
        raster = raster[stage.map.shift_table(stage.shift(block))]
    places = np.stack(np.divmod(raster, stage.map.width), 1)
    places[raster < 0] = -1
    return places


def attention_of_query(
    network: FocalTransformer, images: Tensor, stage: int, block: int, query: tuple[int, int]
) -> tuple[QueryKeys, np.ndarray]:
    """The keys of a query and their attention weights in one image. For PyNative mode.

    Args:
        network: in evaluation mode.
        images: (1, 3, H, W) normalised.
        query: place on the stage's map.

    Returns:
        The keys, and their weights (h, K), which sum to 1 for each head.

    Raises:
        UserError: there is no such stage, block or place.
    """
    layer = network.layers[_check("stage", stage, len(network.layers))]
    attention = layer.blocks[_check("block", block, len(layer.blocks))].attn
    table = attention.tables.table
    keys = query_keys(layer.settings, block, query, table)
    heads, channels = layer.settings.heads, layer.settings.channels
    qkv = attention.qkv(_attention_input(network, images, stage, block)).asnumpy()[0]  # (T, 3 * C)
    rows = qkv.reshape(len(qkv), 3, heads, channels // heads)  # (T, 3, h, d)
    position = np.flatnonzero((_places_in_block(layer.settings, block) == query).all(1))[0]
    group, number = (int(found[0]) for found in np.nonzero(table.queries == position))
    logits = np.einsum("hd,khd->hk", rows[position, 0], rows[keys.keys, 1]) * attention.windowed_products.scale
    logits = logits + attention.position_bias().asnumpy()[:, table.bias_index[group, number]]  # (h, K)
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return keys, weights / weights.sum(1, keepdims=True)


def _check(name: str, value: int, count: int) -> int:
    if not 0 <= value < count:
        raise UserError(f"{name}: {value} is not one of 0 to {count - 1}")
    return value


def _attention_input(network: FocalTransformer, images: Tensor, stage: int, block: int) -> Tensor:
    """What the attention of a block gets: the normalised tokens and the pooled ones, (1, T, C)."""
    x = network.embed(images)
    for layer in list(network.layers)[:stage]:
        x = layer(x)
    layer = network.layers[stage]
    x = layer.to_stage_order(x)  # (1, N, C)
    for earlier in list(layer.blocks)[:block]:
        x = earlier(x)
    cell = layer.blocks[block]
    x = cell.norm1(x)
    if cell.is_token is not None:
        x = x * cell.is_token
    x = cell.roll(x)
    return ops.concat((x, *(pool(x) for pool in cell.pool_layers)), 1)


def spread_on_map(
    keys: QueryKeys, weights: np.ndarray, size: tuple[int, int], level: Optional[int] = None
) -> np.ndarray:
    """Attention weights on the map: the weight of a pooled key is shared evenly by the tokens it stands for.

    Args:
        weights: (K,).
        size: height and width of the stage's map.
        level: only keys of this focal level; None for all.

    Returns:
        (height, width), which sums to the weight of those keys.
    """
    total = np.zeros(size)
    for places, weight, of_level in zip(keys.places, weights, keys.levels):
        if len(places) and level in (None, of_level):
            np.add.at(total, (places[:, 0], places[:, 1]), weight / len(places))
    return total


def grad_cam(network: FocalTransformer, images: Tensor, label: int) -> np.ndarray:
    """Grad-CAM (Selvaraju et al. 2017) of a class on the map of the last stage. For PyNative mode.

    Each channel of the last stage's output is weighted by the mean gradient of the class's logit with respect to it;
    negative sums are cut off.

    Returns:
        (height, width) of the last stage's map, at least 0.
    """
    layer = network.layers[-1]
    x = network.embed(images)
    for earlier in list(network.layers)[:-1]:
        x = earlier(x)
    tokens = layer.run_blocks(x)  # (1, H * W, C)
    head: nn.Cell = network.head

    def logit(values: Tensor) -> Tensor:
        return head(network.norm(values).mean(1))[0, label]

    gradient = ms.grad(logit)(tokens).asnumpy()[0]  # (H * W, C)
    cam = (tokens.asnumpy()[0] * gradient.mean(0)).sum(1)
    return np.maximum(cam, 0).reshape(layer.height, layer.width)
