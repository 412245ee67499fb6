"""Turn raw YAML or flag values into the type a config field declares, or say why not."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any, Union

from focal.config.schema import ConfigError

_TRUE, _FALSE, _NONE = ("true",), ("false",), ("none", "null", "")


def coerce(field: dataclasses.Field, hint: Any, raw: Any) -> Any:
    """Value of `raw` as `hint`, checked against the field's limits.

    Numbers may come as text: flags always do, and YAML 1.1 reads `5e-4` (no dot) as text.

    Raises:
        ConfigError: naming the field, the value and what is allowed.
    """
    try:
        value = _convert(hint, raw)
    except (ValueError, OverflowError):
        raise ConfigError(f"{field.name}: {raw!r} is not {_describe(hint)}") from None
    _check_limits(field, value)
    return value


def _convert(hint: Any, raw: Any) -> Any:
    origin = typing.get_origin(hint)
    if origin is Union:
        return _convert_union(typing.get_args(hint), raw)
    if origin is tuple:
        return tuple(_convert(typing.get_args(hint)[0], entry) for entry in _entries(raw))
    if hint is bool:
        return _convert_bool(raw)
    if hint is str:
        if not isinstance(raw, str):
            raise ValueError
        return raw
    if isinstance(raw, bool) or not isinstance(raw, (int, float, str)):
        raise ValueError
    number = float(raw)
    if not math.isfinite(number):
        raise ValueError
    if hint is float:
        return number
    if number != int(number):
        raise ValueError
    return int(number)


def _convert_union(options: tuple[Any, ...], raw: Any) -> Any:
    if type(None) in options and (raw is None or (isinstance(raw, str) and raw.lower() in _NONE)):
        return None
    for option in options:
        if option is type(None):
            continue
        try:
            return _convert(option, raw)
        except (ValueError, OverflowError):
            continue
    raise ValueError


def _convert_bool(raw: Any) -> bool:
    if isinstance(raw, bool):
        return raw
    if isinstance(raw, str) and raw.lower() in _TRUE + _FALSE:
        return raw.lower() in _TRUE
    raise ValueError


def _entries(raw: Any) -> list[Any]:
    """`[2, 2]`, `(2, 2)` or the text of a flag: `2,2` or `[2, 2]`."""
    if isinstance(raw, str):
        inner = raw.strip().strip("[]()")
        return [part.strip() for part in inner.split(",")] if inner.strip() else []
    if isinstance(raw, (list, tuple)):
        return list(raw)
    raise ValueError


def _describe(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin is Union:
        return " or ".join(_describe(option) for option in typing.get_args(hint))
    if origin is tuple:
        return f"a list of {_describe(typing.get_args(hint)[0]).split(' ', 1)[-1]}s"
    names = {bool: "True or False", int: "an integer", float: "a number", str: "a text", type(None): "none"}
    return names[hint]


def _check_limits(field: dataclasses.Field, value: Any) -> None:
    if value is None:
        return
    limits = field.metadata
    entries = value if isinstance(value, tuple) else (value,)
    if "length" in limits and len(entries) != limits["length"]:
        raise ConfigError(f"{field.name}: {list(entries)} must have {limits['length']} entries")
    if "choices" in limits and value not in limits["choices"]:
        raise ConfigError(f"{field.name}: {value!r} is not one of {', '.join(map(str, limits['choices']))}")
    for entry in entries:
        for name, holds, words in (
            ("low", lambda bound, e=entry: e >= bound, "at least"),
            ("high", lambda bound, e=entry: e <= bound, "at most"),
            ("above", lambda bound, e=entry: e > bound, "greater than"),
            ("below", lambda bound, e=entry: e < bound, "less than"),
        ):
            if name in limits and not holds(limits[name]):
                raise ConfigError(f"{field.name}: {entry} must be {words} {limits[name]}")
