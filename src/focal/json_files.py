"""Small JSON files: records and markers that are whole or not there, and numbers that JSON can hold."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:
    """What a JSON file holds; None if it is not there, or not whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_json(path: Path, content: object) -> None:
    """Write a JSON file in one step: whoever reads it meanwhile sees what it held before."""
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(json.dumps(content), encoding="utf-8")
    os.replace(draft, path)


def finite_or_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with None for each NaN or infinity, which JSON has not."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }
