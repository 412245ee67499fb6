"""Small image folders for the data tests."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import numpy as np
import pytest
from PIL import Image

from src.config import load_config
from src.config.schema import Config


def write_images(folder: Path, counts: dict[str, int], size: tuple[int, int] = (48, 40), seed: int = 0) -> None:
    """JPEGs of smooth random colours, `counts` per class; each differs from all others."""
    rng = np.random.default_rng(seed)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
            image.save(folder / name / f"{number:03d}.jpg", quality=95)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ with 22 images and val/ with 13, of classes a, b, c."""
    root = tmp_path_factory.mktemp("images")
    write_images(root / "train", {"a": 8, "b": 8, "c": 6})
    write_images(root / "val", {"a": 5, "b": 4, "c": 4}, seed=1)
    return root


@pytest.fixture
def make_config() -> Callable[..., Config]:
    """A configuration for `image_folder`, 32 x 32 pixels, batches of 4, with the keys given changed."""

    def make(**changes: object) -> Config:
        keys = {"num_classes": 3, "image_size": 32, "batch_size": 4, "num_parallel_workers": 2, "device_target": "CPU"}
        return load_config({**keys, **changes})

    return make
