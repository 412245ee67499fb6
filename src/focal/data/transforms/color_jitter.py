"""Colour jitter, for recipes without RandAugment; torchvision's ColorJitter(s, s, s)."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageEnhance

_ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def color_jitter(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Change brightness, contrast and saturation in random order.

    The factors are uniform in 1 - strength .. 1 + strength, but never below 0; strength 0 returns the image itself.
    """
    if not strength:
        return image
    for which in rng.permutation(len(_ENHANCERS)):
        image = _ENHANCERS[which](image).enhance(rng.uniform(max(0.0, 1.0 - strength), 1.0 + strength))
    return image
