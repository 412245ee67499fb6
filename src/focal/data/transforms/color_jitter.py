"""Colour jitter, for recipes without RandAugment; torchvision's ColorJitter(s, s, s)."""

from __future__ import annotations

import numpy as np
from PIL import Image

from focal.data.transforms import image_ops

_OPERATIONS = (image_ops.brightness, image_ops.contrast, image_ops.color)


def color_jitter(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Change brightness, contrast and saturation, in random order, by factors uniform in 1 - strength .. 1 + strength.

    Factors are not less than 0; a strength of 0 returns the image as it is.
    """
    if not strength:
        return image
    for which in rng.permutation(len(_OPERATIONS)):
        image = _OPERATIONS[which](image, rng.uniform(max(0.0, 1.0 - strength), 1.0 + strength))
    return image
