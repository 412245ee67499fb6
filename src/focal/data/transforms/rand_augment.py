"""RandAugment (Cubuk et al. 2019) in timm's variant; its policies are parsed by focal.config.rand_augment_policy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Callable, Optional

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from focal.config.rand_augment_policy import MAX_LEVEL, Policy
from focal.data.transforms import image_ops
from focal.data.transforms.crop import draw_interpolation

# From magnitude / 10 and sign (+1 or -1) to the argument of an operation, as timm's level functions.
_Level = Callable[[float, int], float]


@dataclass(frozen=True)
class Operation:
    """One row of the table of operations.

    Args:
        apply: the function, of Pillow or image_ops.
        argument: gives its argument; None if it takes none.
        weight: probability of being chosen under w0.
        increasing: takes the place of `argument` under inc1.
        geometric: whether `apply` moves pixels, and so also takes an interpolation and a fill colour.
    """

    apply: Callable[..., Image.Image]
    argument: Optional[_Level]
    weight: float
    increasing: Optional[_Level] = None
    geometric: bool = False


def _enhancement(enhancer: Callable[[Image.Image], Any], weight: float) -> Operation:
    """The operation that applies one of Pillow's ImageEnhance classes."""
    return Operation(
        lambda image, factor: enhancer(image).enhance(factor),
        lambda m, sign: m * 1.8 + 0.1,
        weight,
        increasing=lambda m, sign: max(0.1, 1.0 + sign * m * 0.9),
    )


# The order of the rows is part of what a seed means.
OPERATIONS: dict[str, Operation] = {
    "AutoContrast": Operation(ImageOps.autocontrast, None, 0.025),
    "Equalize": Operation(ImageOps.equalize, None, 0.005),
    "Invert": Operation(ImageOps.invert, None, 0.0),
    "Rotate": Operation(image_ops.rotate, lambda m, sign: sign * m * 30.0, 0.3, geometric=True),
    "Posterize": Operation(image_ops.posterize, lambda m, _: int(m * 4), 0.0, lambda m, _: 4 - int(m * 4)),
    "Solarize": Operation(ImageOps.solarize, lambda m, _: int(m * 256), 0.005, lambda m, _: 256 - int(m * 256)),
    "SolarizeAdd": Operation(image_ops.solarize_add, lambda m, _: int(m * 110), 0.005),
    "Color": _enhancement(ImageEnhance.Color, 0.025),
    "Contrast": _enhancement(ImageEnhance.Contrast, 0.005),
    "Brightness": _enhancement(ImageEnhance.Brightness, 0.005),
    "Sharpness": _enhancement(ImageEnhance.Sharpness, 0.025),
    "ShearX": Operation(image_ops.shear_x, lambda m, sign: sign * m * 0.3, 0.2, geometric=True),
    "ShearY": Operation(image_ops.shear_y, lambda m, sign: sign * m * 0.3, 0.2, geometric=True),
    "TranslateXRel": Operation(image_ops.translate_x, lambda m, sign: sign * m * 0.45, 0.1, geometric=True),
    "TranslateYRel": Operation(image_ops.translate_y, lambda m, sign: sign * m * 0.45, 0.1, geometric=True),
}

INCREASING_OPERATIONS: dict[str, Operation] = {
    f"{name}Increasing" if row.increasing else name: replace(row, argument=row.increasing or row.argument)
    for name, row in OPERATIONS.items()
}


@dataclass(frozen=True)
class DrawnOperation:
    """An operation that will be applied, with its random choices made."""

    name: str
    magnitude: float
    sign: int
    resample: Image.Resampling


class RandAugment:
    """Draws and applies operations to an 8-bit RGB image.

    Args:
        policy: from `parse_policy`.
        interpolation: of the geometric operations: bicubic, bilinear, or random (drawn per operation).
        image_mean: mean per channel of pixels in 0..1; geometric operations fill empty regions with this colour.
    """

    def __init__(self, policy: Policy, interpolation: str, image_mean: tuple[float, ...]) -> None:
        self._policy = policy
        self._interpolation = interpolation
        self._fill = tuple(min(255, round(255 * mean)) for mean in image_mean)
        operations = self._operations()
        self._names = tuple(operations)
        weights = np.array([operation.weight for operation in operations.values()])
        self._probabilities = weights / weights.sum()

    def _operations(self) -> dict[str, Operation]:
        """Looked up rather than stored, because a worker process cannot be sent the table's lambdas."""
        return INCREASING_OPERATIONS if self._policy.increasing else OPERATIONS

    def draw(self, rng: np.random.Generator) -> list[DrawnOperation]:
        """Draw the operations to apply to one image."""
        policy = self._policy
        drawn = []
        for choice in self._choices(rng):
            if rng.random() >= policy.prob:
                continue
            magnitude = self._draw_magnitude(rng)
            sign = -1 if rng.random() < 0.5 else 1
            resample = draw_interpolation(self._interpolation, rng)
            drawn.append(DrawnOperation(self._names[choice], magnitude, sign, resample))
        return drawn

    def _choices(self, rng: np.random.Generator) -> list[int]:
        """The numbers of the operations that may be applied."""
        if self._policy.weighted:
            choices = rng.choice(len(self._names), self._policy.layers, replace=False, p=self._probabilities)
        else:
            choices = rng.integers(0, len(self._names), self._policy.layers)  # as `choice` does, in half the time
        return choices.tolist()

    def _draw_magnitude(self, rng: np.random.Generator) -> float:
        policy = self._policy
        if policy.magnitude_std > 100:
            return rng.uniform(0, policy.magnitude)
        if policy.magnitude_std > 0:
            return min(max(rng.normal(policy.magnitude, policy.magnitude_std), 0.0), MAX_LEVEL)
        return policy.magnitude

    def apply(self, image: Image.Image, drawn: list[DrawnOperation]) -> Image.Image:
        """Apply drawn operations in order."""
        operations = self._operations()
        for entry in drawn:
            operation = operations[entry.name]
            arguments: list[Any] = []
            if operation.argument is not None:
                arguments.append(operation.argument(entry.magnitude / MAX_LEVEL, entry.sign))
            if operation.geometric:
                arguments += [entry.resample, self._fill]
            image = operation.apply(image, *arguments)
        return image

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        return self.apply(image, self.draw(rng))
