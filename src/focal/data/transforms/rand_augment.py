"""RandAugment (Cubuk et al. 2019) in timm's variant and grammar: rand-m9-n2-mstd0.5-inc1-p0.5-w0.

m     magnitude on a scale of 0 to 10 (default 10)
n     operations per image (default 2)
mstd  standard deviation of the magnitude, which is drawn per operation and clipped to 0..10 (default 0); above 100 the
      magnitude is uniform in 0..m
inc   1: use the set of operations whose severity always grows with the magnitude (default 0)
p     probability that a chosen operation is applied (default 0.5)
w     0: choose operations by timm's first table of weights, without replacement; by default evenly, with replacement
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Callable, Optional

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from focal.config.schema import ConfigError
from focal.data.transforms import image_ops
from focal.data.transforms.crop import draw_interpolation

_MAX_LEVEL = 10.0


@dataclass(frozen=True)
class Policy:
    """A parsed `auto_augment` string, see the grammar above."""

    magnitude: float = _MAX_LEVEL
    layers: int = 2
    magnitude_std: float = 0.0
    increasing: bool = False
    prob: float = 0.5
    weighted: bool = False


def parse_policy(text: str) -> Policy:
    """Parse a `rand-...` string.

    Raises:
        ConfigError: a part is unknown or its value out of range.
    """
    head, *parts = text.split("-")
    fields: dict[str, Any] = {}
    for part in parts:
        match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part)
        if match is None or match.group(1) not in _GRAMMAR:
            raise ConfigError(f"auto_augment: unknown part {part!r} of {text!r}; known are m, n, mstd, inc, p, w")
        name, convert, low, high = _GRAMMAR[match.group(1)]
        value = float(match.group(2))
        if not low <= value <= high or (convert is not float and value != int(value)):
            raise ConfigError(
                f"auto_augment: {part!r} of {text!r} is out of range; {match.group(1)} takes {low}..{high}"
            )
        fields[name] = convert(value)
    if head != "rand":
        raise ConfigError(f"auto_augment: {text!r} is neither none nor of the form rand-m9-n2-mstd0.5-inc1-p0.5-w0")
    return Policy(**fields)


# Letters -> (field, type, lowest value, highest value).
_GRAMMAR: dict[str, tuple[str, Callable[[float], Any], float, float]] = {
    "m": ("magnitude", float, 0, 10),
    "n": ("layers", int, 1, 13),
    "mstd": ("magnitude_std", float, 0, 1000),
    "inc": ("increasing", bool, 0, 1),
    "p": ("prob", float, 0, 1),
    "w": ("weighted", lambda _: True, 0, 0),
}

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
        self._choice: dict[str, Any] = {"p": weights / weights.sum(), "replace": False} if policy.weighted else {}

    def _operations(self) -> dict[str, Operation]:
        """Looked up rather than stored, because a worker process cannot be sent the table's lambdas."""
        return INCREASING_OPERATIONS if self._policy.increasing else OPERATIONS

    def draw(self, rng: np.random.Generator) -> list[DrawnOperation]:
        """Draw the operations to apply to one image."""
        policy = self._policy
        drawn = []
        for choice in rng.choice(len(self._names), policy.layers, **self._choice):
            if rng.random() >= policy.prob:
                continue
            magnitude = self._draw_magnitude(rng)
            sign = -1 if rng.random() < 0.5 else 1
            resample = draw_interpolation(self._interpolation, rng)
            drawn.append(DrawnOperation(self._names[choice], magnitude, sign, resample))
        return drawn

    def _draw_magnitude(self, rng: np.random.Generator) -> float:
        policy = self._policy
        if policy.magnitude_std > 100:
            return rng.uniform(0, policy.magnitude)
        if policy.magnitude_std > 0:
            return min(max(rng.normal(policy.magnitude, policy.magnitude_std), 0.0), _MAX_LEVEL)
        return policy.magnitude

    def apply(self, image: Image.Image, drawn: list[DrawnOperation]) -> Image.Image:
        """Apply drawn operations in order."""
        operations = self._operations()
        for entry in drawn:
            operation = operations[entry.name]
            arguments: list[Any] = []
            if operation.argument is not None:
                arguments.append(operation.argument(entry.magnitude / _MAX_LEVEL, entry.sign))
            if operation.geometric:
                arguments += [entry.resample, self._fill]
            image = operation.apply(image, *arguments)
        return image

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        return self.apply(image, self.draw(rng))
