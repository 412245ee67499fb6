"""Mixup (Zhang et al. 2017) and CutMix (Yun et al. 2019) of a batch with its own reverse, as in timm.

Sample i of a batch of B is mixed with sample B - 1 - i. A draw (method and lambda) serves the whole batch (`batch`),
a pair i, B - 1 - i (`pair`), or one sample (`elem`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import numpy as np

from focal.config.schema import AugmentConfig


@dataclass(frozen=True)
class Mix:
    """What happens to each sample i of a batch: share `lam[i]` stays its own.

    `boxes[i]` None: a weighted sum with the partner (nothing where lam is 1); a box (top, left, bottom, right): pasted
    from the partner, lam being the area outside of it.
    """

    lam: np.ndarray  # float32 (B,)
    boxes: tuple[Optional[tuple[int, int, int, int]], ...]


def draw_mix(augment: AugmentConfig, batch: int, image_hw: tuple[int, int], rng: np.random.Generator) -> Mix:
    """Draw how a batch of `batch` samples is mixed; an odd number is possible where nothing is."""
    if not (augment.mix_up or augment.cutmix):
        return Mix(np.ones(batch, dtype=np.float32), (None,) * batch)
    draws = {"batch": 1, "pair": batch // 2, "elem": batch}[augment.mixup_mode]
    drawn = [_draw_one(augment, image_hw, rng) for _ in range(draws)]
    if augment.mixup_mode == "batch":
        drawn = drawn * batch
    elif augment.mixup_mode == "pair":
        drawn = drawn + drawn[::-1]
    return Mix(np.array([lam for lam, _ in drawn], dtype=np.float32), tuple(box for _, box in drawn))


def _draw_one(
    augment: AugmentConfig, image_hw: tuple[int, int], rng: np.random.Generator
) -> tuple[float, Optional[tuple[int, int, int, int]]]:
    """One lambda and, for CutMix, the box it stands for."""
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


def _draw_box(lam: float, image_hw: tuple[int, int], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A box of share 1 - lam of the image, of its proportions, centred anywhere in it and clipped to it.

    Its sides are even numbers of pixels, as timm's rand_bbox has them.
    """
    ratio = np.sqrt(1.0 - lam)
    spans = []
    for side in image_hw:
        cut = int(side * ratio)
        centre = int(rng.integers(0, side))
        spans.append((max(centre - cut // 2, 0), min(centre + cut // 2, side)))
    (top, bottom), (left, right) = spans
    return top, left, bottom, right


def apply_mix(images: np.ndarray, mix: Mix) -> None:
    """Mix float32 (B, C, H, W) with its reverse along B, in place. B is even, or no sample is mixed."""
    batch = len(images)
    for i in range((batch + 1) // 2):
        j = batch - 1 - i
        first, second = images[i], images[j]
        if mix.lam[i] == 1.0 and mix.lam[j] == 1.0:
            continue
        # Both of a pair are read before either is written.
        pasted = [(box, other[:, box[0] : box[2], box[1] : box[3]].copy()) if box else None
                  for box, other in ((mix.boxes[i], second), (mix.boxes[j], first))]  # fmt: skip
        difference = second - first if None in pasted else None
        for image, lam, paste, sign in ((first, mix.lam[i], pasted[0], 1), (second, mix.lam[j], pasted[1], -1)):
            if paste is not None:
                (top, left, bottom, right), pixels = paste
                image[:, top:bottom, left:right] = pixels
            elif lam != 1.0:
                # lam * own + (1 - lam) * other = own + (1 - lam) * (other - own)
                image += np.float32(sign * (1.0 - lam)) * difference


def mixed_targets(labels: np.ndarray, lam: np.ndarray, num_classes: int, smoothing: float) -> np.ndarray:
    """Targets float32 (B, num_classes), each summing to 1, of int labels (B,) mixed with their reverse.

    Smoothing gives every class smoothing / num_classes and takes it from the label's.
    """
    targets = np.full((len(labels), num_classes), smoothing / num_classes, dtype=np.float32)
    rows = np.arange(len(labels))
    # Added, not assigned: both labels may be the same class.
    targets[rows, labels] += (1.0 - smoothing) * lam
    targets[rows, labels[::-1]] += (1.0 - smoothing) * (1.0 - lam)
    return targets
