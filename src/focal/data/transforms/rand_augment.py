"""RandAugment (Cubuk et al. 2019) in timm's variant and grammar: rand-m9-n2-mstd0.5-inc1-p0.5-w0.

m     magnitude on a scale of 0 to 10 (default 10)
n     operations per image (2)
mstd  standard deviation of the magnitude, drawn per operation and clipped to 0..10 (0); over 100: uniform in 0..m
inc   1: the set whose severity always grows with magnitude (0)
p     probability that a chosen operation is applied (0.5)
w     0: choose by timm's first table of weights, without repetition; not given: evenly, with repetition
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Optional

import numpy as np
from PIL import Image

from focal.config.schema import ConfigError
from focal.data.transforms import image_ops
from focal.data.transforms.crop import draw_interpolation

_MAX_LEVEL = 10.0


@dataclass(frozen=True)
class Policy:
    """A parsed `auto_augment` string; fields as in the grammar above."""

    magnitude: float = _MAX_LEVEL
    layers: int = 2
    magnitude_std: float = 0.0
    increasing: bool = False
    prob: float = 0.5
    weighted: bool = False


def parse_policy(text: str) -> Policy:
    """Parse a `rand-...` string.

    Raises:
        ConfigError: unknown part or value out of range.
    """
    head, *parts = text.split("-")
    fields: dict[str, Any] = {}
    for part in parts:
        match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part)
        parse = _GRAMMAR.get(match.group(1)) if match else None
        if parse is None:
            raise ConfigError(f"auto_augment: unknown part {part!r} of {text!r}; known are m, n, mstd, inc, p, w")
        name, convert, low, high = parse
        value = float(match.group(2))
        if not low <= value <= high or (convert is not float and value != int(value)):
            raise ConfigError(
                f"auto_augment: {part!r} of {text!r} is out of range; {match.group(1)} takes {low}..{high}"
            )
        fields[name] = convert(value)
    if head != "rand":
        raise ConfigError(f"auto_augment: {text!r} is neither none nor of the form rand-m9-n2-mstd0.5-inc1-p0.5-w0")
    return Policy(**fields)


# Letters -> (field, type, least, most).
_GRAMMAR: dict[str, tuple[str, Callable[[float], Any], float, float]] = {
    "m": ("magnitude", float, 0, 10),
    "n": ("layers", int, 1, 13),
    "mstd": ("magnitude_std", float, 0, 1000),
    "inc": ("increasing", bool, 0, 1),
    "p": ("prob", float, 0, 1),
    "w": ("weighted", lambda _: True, 0, 0),
}


@dataclass(frozen=True)
class Operation:
    """One row of the table of operations.

    Args:
        apply: function of image_ops.
        argument: (magnitude 0..10, sign +1 or -1) -> its argument; None: it takes none.
        geometric: it moves pixels, so it also takes an interpolation and a fill colour.
        weight: for w0.
    """

    apply: Callable[..., Image.Image]
    argument: Optional[Callable[[float, int], float]]
    geometric: bool = False
    weight: float = 0.0


# Magnitude and sign -> argument, as timm's level functions. Not lambdas: a worker process must be able to receive them.


def _signed(most: float, level: float, sign: int) -> float:
    return sign * level / _MAX_LEVEL * most


def _enhance(level: float, sign: int) -> float:
    return level / _MAX_LEVEL * 1.8 + 0.1


def _enhance_increasing(level: float, sign: int) -> float:
    return max(0.1, 1.0 + sign * level / _MAX_LEVEL * 0.9)


def _posterize_bits(level: float, sign: int) -> int:
    return int(level / _MAX_LEVEL * 4)


def _posterize_bits_increasing(level: float, sign: int) -> int:
    return 4 - _posterize_bits(level, sign)


def _solarize_threshold(level: float, sign: int) -> int:
    return min(256, int(level / _MAX_LEVEL * 256))


def _solarize_threshold_increasing(level: float, sign: int) -> int:
    return 256 - _solarize_threshold(level, sign)


def _solarize_amount(level: float, sign: int) -> int:
    return min(128, int(level / _MAX_LEVEL * 110))


_COMMON_BEFORE = {
    "AutoContrast": Operation(image_ops.auto_contrast, None, weight=0.025),
    "Equalize": Operation(image_ops.equalize, None, weight=0.005),
    "Invert": Operation(image_ops.invert, None, weight=0.0),
    "Rotate": Operation(image_ops.rotate, partial(_signed, 30.0), True, weight=0.3),
}
_COMMON_AFTER = {
    "ShearX": Operation(image_ops.shear_x, partial(_signed, 0.3), True, weight=0.2),
    "ShearY": Operation(image_ops.shear_y, partial(_signed, 0.3), True, weight=0.2),
    "TranslateXRel": Operation(image_ops.translate_x, partial(_signed, 0.45), True, weight=0.1),
    "TranslateYRel": Operation(image_ops.translate_y, partial(_signed, 0.45), True, weight=0.1),
}
_SOLARIZE_ADD = Operation(image_ops.solarize_add, _solarize_amount, weight=0.005)

OPERATIONS: dict[str, Operation] = {
    **_COMMON_BEFORE,
    "Posterize": Operation(image_ops.posterize, _posterize_bits, weight=0.0),
    "Solarize": Operation(image_ops.solarize, _solarize_threshold, weight=0.005),
    "SolarizeAdd": _SOLARIZE_ADD,
    "Color": Operation(image_ops.color, _enhance, weight=0.025),
    "Contrast": Operation(image_ops.contrast, _enhance, weight=0.005),
    "Brightness": Operation(image_ops.brightness, _enhance, weight=0.005),
    "Sharpness": Operation(image_ops.sharpness, _enhance, weight=0.025),
    **_COMMON_AFTER,
}

INCREASING_OPERATIONS: dict[str, Operation] = {
    **_COMMON_BEFORE,
    "PosterizeIncreasing": Operation(image_ops.posterize, _posterize_bits_increasing, weight=0.0),
    "SolarizeIncreasing": Operation(image_ops.solarize, _solarize_threshold_increasing, weight=0.005),
    "SolarizeAdd": _SOLARIZE_ADD,
    "ColorIncreasing": Operation(image_ops.color, _enhance_increasing, weight=0.025),
    "ContrastIncreasing": Operation(image_ops.contrast, _enhance_increasing, weight=0.005),
    "BrightnessIncreasing": Operation(image_ops.brightness, _enhance_increasing, weight=0.005),
    "SharpnessIncreasing": Operation(image_ops.sharpness, _enhance_increasing, weight=0.025),
    **_COMMON_AFTER,
}


@dataclass(frozen=True)
class DrawnOperation:
    """An operation that will be applied, and everything it needs to know."""

    name: str
    magnitude: float
    sign: int
    resample: Image.Resampling


class RandAugment:
    """Draws and applies operations to an 8-bit RGB image.

    Args:
        policy: from `parse_policy`.
        interpolation: bicubic, bilinear or random (drawn per operation), for the geometric operations.
        image_mean: per channel, of pixels in 0..1: the colour of what a geometric operation leaves empty.
    """

    def __init__(self, policy: Policy, interpolation: str, image_mean: tuple[float, ...]) -> None:
        self._policy = policy
        self._interpolation = interpolation
        self._fill = tuple(min(255, round(255 * mean)) for mean in image_mean)
        self._operations = INCREASING_OPERATIONS if policy.increasing else OPERATIONS
        self._names = tuple(self._operations)
        weights = np.array([operation.weight for operation in self._operations.values()])
        self._choice: dict[str, Any] = {"p": weights / weights.sum(), "replace": False} if policy.weighted else {}

    def draw(self, rng: np.random.Generator) -> list[DrawnOperation]:
        """The operations for one image; those that lost their toss are left out."""
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
        """Apply drawn operations in their order."""
        for entry in drawn:
            operation = self._operations[entry.name]
            arguments: list[Any] = []
            if operation.argument is not None:
                arguments.append(operation.argument(entry.magnitude, entry.sign))
            if operation.geometric:
                arguments += [entry.resample, self._fill]
            image = operation.apply(image, *arguments)
        return image

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        return self.apply(image, self.draw(rng))
