"""How one configuration key is declared, and the error for a configuration that cannot be used."""

from __future__ import annotations

import dataclasses
from typing import Any, Optional

from focal.errors import UserError


class ConfigError(UserError):
    """A configuration that cannot be used; the message names the field, its value and how to fix it."""


def key(
    default: Any,
    help: str,
    *,
    choices: Optional[tuple[Any, ...]] = None,
    low: Optional[float] = None,
    high: Optional[float] = None,
    above: Optional[float] = None,
    below: Optional[float] = None,
    length: Optional[int] = None,
    may_change: bool = False,
) -> Any:
    """Declare one configuration key as a dataclass field.

    Args:
        default: value of the key if neither YAML nor flags give one.
        help: what the key means, as shown by `--help`.
        choices: the legal values, if there are only a few.
        low: smallest legal value; like all bounds, it applies to every entry of a list.
        high: largest legal value.
        above: exclusive lower bound.
        below: exclusive upper bound.
        length: number of entries of a list.
        may_change: a resumed training may use another value, because the key does not affect what is computed.
    """
    limits = {"choices": choices, "low": low, "high": high, "above": above, "below": below, "length": length}
    metadata = {name: limit for name, limit in limits.items() if limit is not None}
    return dataclasses.field(default=default, metadata={"help": help, "may_change": may_change, **metadata})
