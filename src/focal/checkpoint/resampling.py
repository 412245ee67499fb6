"""Weights of a network of one image or window size for the same network of another.

Whatever has the size of a window is resampled bicubically: the tables of version 1 and the pooling weights of both
versions; so are absolute positions, which have the size of the image. Version 2's biases come from relative coordinates
and fit any size, and its keys are those of the network.

Shape legend: w window side; h heads; e width of the surroundings; S = 4 * (w^2 - (w - e)^2) surrounding keys;
C channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Optional

import numpy as np
from PIL import Image

from focal.models.focal_keys import num_surrounding, outside_window

ABSOLUTE = "absolute_pos_embed"  # (1, H * W, C)
_OWN = ".relative_position_bias_table"  # ((2 * w - 1)^2, h)
_SURROUNDING = ".relative_position_bias_table_to_neighbors"  # (1, h, w * w, S)
_POOLED = ".relative_position_bias_table_to_windows."  # and the level; (h, (w + side - 1)^2)
_POOLING = ".pool_layers."  # and the level; (1, side^2) of fc pooling, (C, 1, side, side) of pooling by convolution

Shape = tuple[int, ...]


def resample_weights(
    weights: Mapping[str, np.ndarray], shapes: Mapping[str, Shape], map_hw: Optional[tuple[int, int]]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Resample what differs from a network in the size of its windows or images alone.

    Args:
        weights: arrays by official parameter name.
        shapes: those of the network's parameters.
        map_hw: height and width of the network's first map in tokens, for absolute positions.

    Returns:
        The weights, and the names of those that were resampled. What cannot be resampled keeps its shape.
    """
    fitted, resampled = dict(weights), []
    for name, value in weights.items():
        shape = shapes.get(name)
        if shape is None or shape == value.shape or value.ndim != len(shape):
            continue
        new = _resample(name, value, shape, map_hw)
        if new is not None and new.shape == shape:
            fitted[name] = new.astype(np.float32)
            resampled.append(name)
    return fitted, resampled


def _resample(name: str, value: np.ndarray, shape: Shape, map_hw: Optional[tuple[int, int]]) -> Optional[np.ndarray]:
    """`value` for the parameter `name` of the given shape; None if it does not have the size of a window or image."""
    if name == ABSOLUTE:
        return None if map_hw is None or not _is_square(value.shape[1]) else resample_positions(value, map_hw)
    if name.endswith(_SURROUNDING):
        return _resample_surrounding(value, shape)
    if name.endswith(_OWN):
        return _resample_square(value, 0, shape[0])
    if _POOLED in name:
        return _resample_square(value, 1, shape[1])
    if _POOLING in name and name.endswith(".weight"):
        flat = value.reshape(value.shape[0], -1)  # (1 or C, side^2)
        new = _resample_square(flat, 1, math.prod(shape[1:]))
        # A pooled token stays a mean of its window: the weights' sum must not grow with their number.
        return None if new is None else (new * (flat.shape[1] / new.shape[1])).reshape(new.shape[0], *shape[1:])
    return None


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number


def _resample_square(value: np.ndarray, axis: int, length: int) -> Optional[np.ndarray]:
    """Resample an axis that runs over a square, row by row, to `length` places; None if one is not a square."""
    if not (_is_square(value.shape[axis]) and _is_square(length)):
        return None
    old, new = math.isqrt(value.shape[axis]), math.isqrt(length)
    rest = np.moveaxis(value, axis, 0)
    grid = resample_bicubic(rest.reshape(old, old, -1), (new, new))
    return np.moveaxis(grid.reshape(length, *rest.shape[1:]), 0, axis)


def _resample_surrounding(value: np.ndarray, shape: Shape) -> Optional[np.ndarray]:
    """The table of the surroundings: over the places of the queries, and along each side of each of the four parts."""
    (window, expand), (new_window, new_expand) = _window_and_expand(value.shape), _window_and_expand(shape)
    # A part without an inner side (the surroundings are as wide as the window) has nothing to make one from.
    if min(expand, new_expand) < 1 or (window == expand) != (new_window == new_expand):
        return None
    queries = _resample_square(value, 2, shape[2])
    if queries is None:
        return None
    flat = np.moveaxis(queries, 3, 0)  # (S, 1, h, w' * w')
    old = np.zeros((4, window, window, flat[0].size))
    old[outside_window(window, expand)] = flat.reshape(len(flat), -1)
    new = np.zeros((4, new_window, new_window, flat[0].size))
    for (part, rows, columns), (_, new_rows, new_columns) in zip(
        _sides(window, expand), _sides(new_window, new_expand)
    ):
        side = old[part, rows, columns]
        if side.size:
            new[part, new_rows, new_columns] = resample_bicubic(side, new[part, new_rows, new_columns].shape[:2])
    kept = new[outside_window(new_window, new_expand)]  # (S', h * w' * w')
    return np.moveaxis(kept.reshape(-1, *flat.shape[1:]), 0, 3)


def _window_and_expand(shape: Shape) -> tuple[int, int]:
    """w and e of a table of the surroundings (1, h, w * w, S); e is 0 if the shape is not one of these."""
    window = math.isqrt(shape[2])
    inside = window**2 - shape[3] // 4
    expand = window - math.isqrt(max(inside, 0))
    fits = window**2 == shape[2] and num_surrounding(window, expand) == shape[3]
    return window, expand if fits else 0


def _sides(window: int, expand: int) -> Iterator[tuple[int, slice, slice]]:
    """The two rectangles that make up each part of `outside_window`, which is L-shaped: (part, rows, columns)."""
    first, last = slice(0, expand), slice(window - expand, window)
    after_first, before_last = slice(expand, window), slice(0, window - expand)
    parts = ((last, before_last, last), (last, before_last, first), (first, after_first, last),
             (first, after_first, first))  # fmt: skip
    for part, (rows, other_rows, columns) in enumerate(parts):
        yield part, rows, slice(0, window)
        yield part, other_rows, columns


def resample_bicubic(grid: np.ndarray, hw: tuple[int, ...]) -> np.ndarray:
    """Resample (H, W, ...) to (h, w, ...), without a filter when it shrinks.

    The formula is that of PyTorch's `interpolate(mode="bicubic", align_corners=False)`, with which Swin's
    `load_pretrained` and timm's `resize_rel_pos_bias_table_simple` resample bias tables.
    """
    rows, columns = (_cubic_weights(old, new) for old, new in zip(grid.shape, hw))
    resampled: np.ndarray = np.einsum("yr,xc,rc...->yx...", rows, columns, grid.astype(np.float64), optimize=True)
    return resampled


def _cubic_weights(old: int, new: int) -> np.ndarray:
    """(new, old): the weights of the old places in each new one: cubic convolution with a = -0.75, edges repeated."""
    a = -0.75
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.zeros((new, old))
    for offset in (-1, 0, 1, 2):
        places = np.floor(centres) + offset
        x = np.abs(centres - places)
        near = ((a + 2) * x - (a + 3)) * x**2 + 1
        far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        np.add.at(weights, (np.arange(new), places.clip(0, old - 1).astype(int)), np.where(x <= 1, near, far))
    return weights


def resample_positions(embedding: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """Absolute position embedding (1, N, C) of a square map, resampled bicubically to (1, H * W, C).

    Pillow's filter is that of timm's `resample_abs_pos_embed` (bicubic with antialiasing, a = -0.5).
    """
    height, width = hw
    side = math.isqrt(embedding.shape[1])
    grid = embedding.reshape(side, side, -1).astype(np.float32)  # (side, side, C)
    channels = [
        np.asarray(Image.fromarray(channel).resize((width, height), Image.Resampling.BICUBIC))
        for channel in np.moveaxis(grid, -1, 0)
    ]
    resampled: np.ndarray = np.stack(channels, -1)  # (H, W, C)
    return resampled.reshape(1, height * width, -1)
