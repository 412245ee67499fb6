"""Class names of a checkpoint or an exported file, and their comparison with those of the data.

A label is a place in the sorted list of class folders. Once folders are renamed, the same number may mean another
class, and only the names can tell.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from typing import Any, Optional

from focal.config import ConfigError

logger = logging.getLogger("focal")

ClassNames = Optional[tuple[str, ...]]  # by label; None if they are not known
_NAMED = 3  # how many labels a message names


def class_names_of(meta: Optional[Mapping[str, Any]]) -> ClassNames:
    """The class names in a checkpoint's metadata; None in weights from elsewhere and in checkpoints without names."""
    names = (meta or {}).get("class_names")
    return tuple(names) if names else None


def class_name_difference(saved: ClassNames, present: ClassNames) -> Optional[str]:
    """How the names in a file differ from those of the data, as a phrase; None if they agree or one is not known."""
    if saved is None or present is None or saved == present:
        return None
    pairs = list(enumerate(itertools.zip_longest(saved, present, fillvalue=None)))
    changed = [f"label {label}: {_quoted(old)} -> {_quoted(new)}" for label, (old, new) in pairs if old != new]
    if sorted(saved) == sorted(present):
        text = f"the same {len(saved)} names in another order"
    else:
        text = f"{len(changed)} of {len(saved)} names"
    return f"{text} ({'; '.join(changed[:_NAMED])}{'; ...' if len(changed) > _NAMED else ''})"


def _quoted(name: Optional[str]) -> str:
    return "none" if name is None else repr(name)


def check_class_names(key: str, path: object, saved: ClassNames, present: ClassNames, allowed: bool) -> None:
    """Refuse data whose labels have other names than those of a checkpoint.

    Args:
        key: the setting that names the checkpoint.
        path: the checkpoint.
        saved: its class names.
        present: the names of the data.
        allowed: the value of `allow_config_change`: log a warning instead.

    Raises:
        ConfigError: they differ.
    """
    difference = class_name_difference(saved, present)
    if difference is None:
        return
    if not allowed:
        raise ConfigError(
            f"{key}: the class names of the data differ from those of {path}: {difference}; restore the names of the "
            "class folders, or give --allow_config_change True if every label still means the same class"
        )
    logger.warning("%s: the class names of the data differ from those of %s: %s", key, path, difference)
