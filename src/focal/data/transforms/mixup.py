"""Mixup (Zhang et al. 2017) and CutMix (Yun et al. 2019) of a batch with its own reverse, as in timm.

Sample i of a batch of B is mixed with sample B - 1 - i. The method and lambda are drawn once for the whole batch
(`mixup_mode: batch`), for each pair i, B - 1 - i (`pair`), or for each sample (`elem`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import numpy as np

from focal.config.schema import AugmentConfig
from focal.data.transforms.boxes import Box, box_masks


@dataclass(frozen=True)
class Mix:
    """How a batch is mixed: sample i keeps the fraction `lam[i]` of itself; the rest comes from its partner.

    If `boxes[i]` is None, the two are added with these weights. Otherwise it is a box that is pasted
    from the partner, and `lam[i]` is the fraction of the area outside of it.
    """

    lam: np.ndarray  # float32 (B,)
    boxes: tuple[Optional[Box], ...]


def unmixed(batch: int) -> Mix:
    """A batch in which every sample stays as it is."""
    return Mix(np.ones(batch, dtype=np.float32), (None,) * batch)


def draw_mix(augment: AugmentConfig, batch: int, image_hw: tuple[int, int], rng: np.random.Generator) -> Mix:
    """Draw how a batch of `batch` samples is mixed; the number may be odd only if mixing is off."""
    if not (augment.mix_up or augment.cutmix):
        return unmixed(batch)
    draws = {"batch": 1, "pair": batch // 2, "elem": batch}[augment.mixup_mode]
    drawn = [_draw_one(augment, image_hw, rng) for _ in range(draws)]
    if augment.mixup_mode == "batch":
        drawn = drawn * batch
    elif augment.mixup_mode == "pair":
        drawn = drawn + drawn[::-1]
    return Mix(np.array([lam for lam, _ in drawn], dtype=np.float32), tuple(box for _, box in drawn))


def _draw_one(
    augment: AugmentConfig, image_hw: tuple[int, int], rng: np.random.Generator
) -> tuple[float, Optional[Box]]:
    """Draw one lambda and, for CutMix, its box."""
    if rng.random() >= augment.mixup_prob:
        return 1.0, None
    use_cutmix = augment.cutmix > 0 and (augment.mix_up == 0 or rng.random() < augment.switch_prob)
    alpha = augment.cutmix if use_cutmix else augment.mix_up
    lam = float(rng.beta(alpha, alpha))
    if not use_cutmix:
        return lam, None
    box = _draw_box(lam, image_hw, rng)
    top, left, bottom, right = box
    return 1.0 - (bottom - top) * (right - left) / (image_hw[0] * image_hw[1]), box


def _draw_box(lam: float, image_hw: tuple[int, int], rng: np.random.Generator) -> Box:
    """Draw a box with the image's proportions and 1 - lam of its area, centred anywhere in it and clipped to it.

    Its sides are even numbers of pixels, as in timm's rand_bbox.
    """
    ratio = np.sqrt(1.0 - lam)
    spans = []
    for side in image_hw:
        cut = int(side * ratio)
        centre = int(rng.integers(0, side))
        spans.append((max(centre - cut // 2, 0), min(centre + cut // 2, side)))
    (top, bottom), (left, right) = spans
    return top, left, bottom, right


def partner_masks(mix: Mix, image_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Masks over rows, float32 (B, 1, H, 1), and columns, (B, 1, 1, W), whose product is the partner's weight.

    With x for a pixel and p for the partner's, x + weight * (p - x) is the mixed one: the weight is 1 in a pasted box,
    and 1 - lam everywhere if the two are added.
    """
    rows, columns = box_masks([[box or (0, 0, *image_hw)] for box in mix.boxes], 1, image_hw)
    weights = [1.0 if box else 1.0 - lam for lam, box in zip(mix.lam, mix.boxes)]
    return rows * np.array(weights, np.float32)[:, None, None, None], columns


def mixed_targets(labels: np.ndarray, lam: np.ndarray, num_classes: int, smoothing: float) -> np.ndarray:
    """Targets of int labels (B,) mixed with their reverse: float32 (B, num_classes), each summing to 1.

    Label smoothing gives every class smoothing / num_classes and takes it from the label.
    """
    targets = np.full((len(labels), num_classes), smoothing / num_classes, dtype=np.float32)
    rows = np.arange(len(labels))
    # Add rather than assign, because both labels may be the same class.
    targets[rows, labels] += (1.0 - smoothing) * lam
    targets[rows, labels[::-1]] += (1.0 - smoothing) * (1.0 - lam)
    return targets
