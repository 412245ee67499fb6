"""The grammar of `auto_augment`, which is timm's: rand-m9-n2-mstd0.5-inc1-p0.5-w0.

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
from dataclasses import dataclass
from typing import Any, Callable

from focal.config.schema import ConfigError

MAX_LEVEL = 10.0  # of the magnitude


@dataclass(frozen=True)
class Policy:
    """A parsed `auto_augment` string; see the grammar above."""

    magnitude: float = MAX_LEVEL
    layers: int = 2
    magnitude_std: float = 0.0
    increasing: bool = False
    prob: float = 0.5
    weighted: bool = False


def parse_policy(text: str) -> Policy:
    """Parse a `rand-...` string.

    Raises:
        ConfigError: `text` does not begin with rand, a part is unknown, or its value is out of range.
    """
    head, *parts = text.split("-")
    if head != "rand":
        raise ConfigError(f"auto_augment: {text!r} is neither none nor of the form rand-m9-n2-mstd0.5-inc1-p0.5-w0")
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
