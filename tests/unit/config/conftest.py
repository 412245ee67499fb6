"""A YAML file of a given text."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def write_yaml(tmp_path: Path) -> Callable[..., str]:
    """Write a text to a YAML file of the test's folder and return its path."""

    def write(text: str, name: str = "settings.yaml") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return write
