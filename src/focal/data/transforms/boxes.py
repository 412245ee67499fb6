"""Boxes in images, and the masks by which they are sent to the device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Box = tuple[int, int, int, int]  # top, left, bottom, right


def box_masks(boxes: Sequence[Sequence[Box]], most: int, image_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Masks over rows and over columns whose matrix product counts the boxes that hold a pixel.

    A device then needs no indices: neither comparisons nor slices.

    Args:
        boxes: up to `most` boxes for each of B images.
        most: R, the same for all batches, so that the step is compiled once.
        image_hw: height and width of the images.

    Returns:
        Zeros and ones, float32: (B, 1, H, R) and (B, 1, R, W).
    """
    height, width = image_hw
    rows = np.zeros((len(boxes), 1, height, most), np.float32)
    columns = np.zeros((len(boxes), 1, most, width), np.float32)
    for image, boxes_of_image in enumerate(boxes):
        for number, (top, left, bottom, right) in enumerate(boxes_of_image):
            rows[image, 0, top:bottom, number] = 1
            columns[image, 0, number, left:right] = 1
    return rows, columns
