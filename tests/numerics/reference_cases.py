"""The authors' figures and what is needed to recompute them: settings, weights and inputs of each case."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from focal.checkpoint.official import load_official_state_dict, official_buffers
from focal.config import Config, load_config
from focal.models import create_model
from tests.numerics import synthetic

FOLDER = Path(__file__).parent / "reference"
LISTED = sorted(path.stem for path in FOLDER.glob("*.json"))  # cases with names and shapes
WITH_FIGURES = [name for name in LISTED if (FOLDER / f"{name}.npz").exists()]


@cache
def listing(name: str) -> dict[str, Any]:
    """Constructor arguments and state dict entries (shape, dtype, kind) of a case."""
    return json.loads((FOLDER / f"{name}.json").read_text())


@cache
def figures(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def case_config(name: str, **changes: Any) -> Config:
    case = listing(name)
    keys = dict(case["config"])
    keys["image_size"] = keys.pop("img_size")
    return load_config({"arch": case["arch"], "focal_version": case["version"], **keys, **changes})


def official_state(name: str, network: Any) -> dict[str, np.ndarray]:
    """The case's whole official state dict; what its figures do not hold of the buffers comes from `network`."""
    ours, theirs = official_buffers(network), figures(name) if name in WITH_FIGURES else {}
    state = {}
    for entry, (shape, dtype, kind) in listing(name)["state_dict"].items():
        if kind == "param":
            state[entry] = synthetic.tensor_value(entry, tuple(shape))
        else:
            state[entry] = theirs.get(f"buffer:{entry}", ours[entry]).astype(dtype)
    return state


def loaded_network(name: str) -> Any:
    """The case's network with its synthetic weights, in evaluation mode."""
    network = create_model(case_config(name))
    load_official_state_dict(network, official_state(name, network))
    network.set_train(False)
    return network


def case_input(name: str) -> np.ndarray:
    height, width = case_config(name).model.image_hw
    if height == width:
        return synthetic.input_batch(name, 2, height)
    return synthetic._rng(f"{name}/2/{height}").standard_normal((2, 3, height, width)).astype(np.float32)
