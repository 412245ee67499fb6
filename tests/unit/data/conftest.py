"""The configuration that goes with the small image folder of the data tests."""

from __future__ import annotations

from typing import Callable

import pytest

from focal.config import load_config
from focal.config.schema import Config


@pytest.fixture
def make_config() -> Callable[..., Config]:
    """Makes a configuration for `image_folder`: 32 x 32 pixels, batches of 4; with any keys changed."""

    def make(**changes: object) -> Config:
        keys = {"num_classes": 3, "image_size": 32, "batch_size": 4, "num_parallel_workers": 2, "device_target": "CPU"}
        return load_config({**keys, **changes})

    return make
