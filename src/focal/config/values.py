"""Convert raw YAML or flag values to the declared type of a key and check them against its limits."""

from __future__ import annotations

import dataclasses
import math
import operator
import typing
from typing import Any, Union

from focal.config.schema import ConfigError
from focal.errors import shown

_BOUNDS = {
    "low": (operator.ge, "at least"),
    "high": (operator.le, "at most"),
    "above": (operator.gt, "greater than"),
    "below": (operator.lt, "less than"),
}
_TYPE_NAMES = {bool: "True or False", int: "an integer", float: "a number", str: "a string", type(None): "none"}


def coerce(field: dataclasses.Field[Any], hint: Any, raw: Any) -> Any:
    """Return `raw` as a value of type `hint` that satisfies the field's limits.

    Numbers may come as text: flags always do, and YAML files where YAML 1.1 would read something else (yaml_files.py).

    Args:
        field: the key's declaration, whose metadata holds its limits.
        hint: the key's resolved type: bool, int, float, str, a tuple of one of them, or a Union.
        raw: the value as given.

    Raises:
        ConfigError: wrong type or value; the message names the key, the value and what is allowed.
    """
    try:
        value = _convert(hint, raw)
    except (ValueError, OverflowError):
        raise ConfigError(f"{field.name}: {shown(raw)} is not {_describe(hint)}") from None
    if isinstance(value, str) and (not value.strip() or "\0" in value):
        raise ConfigError(f"{field.name}: {shown(value)} is empty or holds a NUL character; give a value, or omit it")
    if value is not None:
        _check_limits(field, value)
    return value


def _convert(hint: Any, raw: Any) -> Any:
    """Return `raw` as `hint`, or raise ValueError or OverflowError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Union:
        return _convert_union(arguments, raw)
    if origin is tuple:
        return tuple(_convert(arguments[0], entry) for entry in _entries(raw))
    if hint is str:
        if isinstance(raw, str):
            return raw
    elif hint is bool:
        if isinstance(raw, (bool, str)) and str(raw).lower() in ("true", "false"):
            return str(raw).lower() == "true"
    elif isinstance(raw, (int, float, str)) and not isinstance(raw, bool):
        number = float(raw)
        if math.isfinite(number) and (hint is float or number.is_integer()):
            return hint(number)
    raise ValueError


def _convert_union(options: tuple[Any, ...], raw: Any) -> Any:
    if type(None) in options and (raw is None or (isinstance(raw, str) and raw.lower() in ("none", "null", ""))):
        return None
    for option in options:
        if option is not type(None):
            try:
                return _convert(option, raw)
            except (ValueError, OverflowError):
                continue
    raise ValueError


def _entries(raw: Any) -> list[Any]:
    """Entries of a list or tuple, or of the text of a flag: `2,2` or `[2, 2]`."""
    if isinstance(raw, str):
        inner = raw.strip().strip("[]()")
        return [part.strip() for part in inner.split(",")] if inner.strip() else []
    if isinstance(raw, (list, tuple)):
        return list(raw)
    raise ValueError


def _describe(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Union:
        return " or ".join(_describe(option) for option in arguments)
    if origin is tuple:
        return f"a list of {_describe(arguments[0]).split(' ', 1)[-1]}s"
    return _TYPE_NAMES[hint]


def _check_limits(field: dataclasses.Field[Any], value: Any) -> None:
    limits = field.metadata
    entries = value if isinstance(value, tuple) else (value,)
    if "length" in limits and len(entries) != limits["length"]:
        raise ConfigError(f"{field.name}: {shown(list(entries))} must have {limits['length']} entries")
    if "choices" in limits and value not in limits["choices"]:
        raise ConfigError(f"{field.name}: {shown(value)} is not one of {', '.join(map(str, limits['choices']))}")
    for entry in entries:
        for name, (holds, words) in _BOUNDS.items():
            if name in limits and not holds(entry, limits[name]):
                raise ConfigError(f"{field.name}: {entry} must be {words} {limits[name]}")
