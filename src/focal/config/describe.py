"""Describe keys in words: for `--help`, and for the reference of all keys (docs/keys.md)."""

from __future__ import annotations

import typing
from typing import Any, Union

from focal.config.loading import Key

_PLACEHOLDERS = {bool: "True|False", int: "N", float: "X", str: "TEXT"}
_TYPES = {bool: "True or False", int: "integer", float: "number", str: "text"}


def describe_placeholder(key: Key) -> str:
    """What stands for the value in `--help`: the choices, or a word for the type."""
    if "choices" in key.field.metadata:
        return "{" + ",".join(map(str, key.field.metadata["choices"])) + "}"
    return "|".join("LIST" if is_list(option) else _PLACEHOLDERS[option] for option in _options(key.type))


def describe_type(key: Key) -> str:
    """The type of a key, such as "integer or none" or "list of numbers"."""
    words = [f"list of {_TYPES[typing.get_args(o)[0]]}s" if is_list(o) else _TYPES[o] for o in _options(key.type)]
    return " or ".join(words + (["none"] if type(None) in typing.get_args(key.type) else []))


def describe_range(key: Key) -> str:
    """The legal values of a key, such as "0 ≤ x < 1" or "≥ 1"; empty if its type says all."""
    limits = key.field.metadata
    if "choices" in limits:
        return ", ".join(map(str, limits["choices"]))
    lower = [f"{limits[name]:.10g} {sign}" for name, sign in (("low", "≤"), ("above", "<")) if name in limits]
    upper = [f"{sign} {limits[name]:.10g}" for name, sign in (("high", "≤"), ("below", "<")) if name in limits]
    if lower and not upper:
        lower, upper = [], [f"≥ {limits['low']:.10g}" if "low" in limits else f"> {limits['above']:.10g}"]
    bounds = " x ".join(lower + upper) if lower else "".join(upper)
    entries = f"{limits['length']} entries" if "length" in limits else ""
    return ", ".join(filter(None, (entries, bounds)))


def describe_value(value: Any) -> str:
    """A value as one would write it in a flag."""
    if value is None:
        return "none"
    if isinstance(value, (tuple, list)):
        return ",".join(map(describe_value, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def is_list(hint: Any) -> bool:
    """Whether a type is that of a list."""
    return typing.get_origin(hint) is tuple


def _options(hint: Any) -> tuple[Any, ...]:
    """The types of a Union without None, or the type itself."""
    if typing.get_origin(hint) is Union:
        return tuple(option for option in typing.get_args(hint) if option is not type(None))
    return (hint,)
