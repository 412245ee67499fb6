"""What a model file says of itself: the settings of its network and preprocessing, and its class names.

A checkpoint has them in its metadata. Exported files hold them as texts by key, each text a JSON value: ONNX in
`metadata_props`, MINDIR in `user_info`. AIR has no place for them.

    arch, model          name of the network, and all keys of the configuration's model section
    image_size           [height, width] of the input in pixels
    crop_ratio           the centre crop's side, as a fraction of the resized shorter side
    interpolation        of that resize: bicubic or bilinear, with antialiasing, as Pillow does
    image_mean, image_std  per channel (RGB), for pixel values in [0, 1]
    class_names          by label; absent if they are not known
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from focal.checkpoint.class_names import ClassNames
from focal.config import Config, to_flat_dict
from focal.config.schema import ModelConfig

PREPROCESSING = ("crop_ratio", "interpolation", "image_mean", "image_std")
_MODEL_KEYS = tuple(field.name for field in dataclasses.fields(ModelConfig))


@dataclasses.dataclass(frozen=True)
class ModelDescription:
    """What a model file says of itself.

    Attributes:
        settings: flat keys of the configuration: the model section and PREPROCESSING; empty if the file says nothing.
        class_names: by label; None if they are not known.
    """

    settings: Mapping[str, Any]
    class_names: ClassNames


def describe(config: Config, class_names: ClassNames) -> ModelDescription:
    """The description of a network that `config` describes."""
    return ModelDescription(relevant_settings(to_flat_dict(config)), class_names)


def relevant_settings(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the flat settings that a model file carries: keys that this program does not know are left out."""
    return {name: flat[name] for name in (*_MODEL_KEYS, *PREPROCESSING) if name in flat}


def to_entries(description: ModelDescription) -> dict[str, str]:
    """The description as texts by key, for an exported file."""
    settings = description.settings
    size = settings["image_size"]
    values = {
        "arch": settings["arch"],
        "image_size": [size, size] if isinstance(size, int) else size,
        **{name: settings[name] for name in PREPROCESSING},
        "model": {name: settings[name] for name in _MODEL_KEYS},
    }
    if values["interpolation"] == "random":
        values["interpolation"] = "bicubic"  # what evaluation makes of it
    if description.class_names is not None:
        values["class_names"] = description.class_names
    return {name: json.dumps(value) for name, value in values.items()}


def from_entries(entries: Mapping[str, str]) -> ModelDescription:
    """The description in an exported file; an empty one if the file was written by another or an earlier program."""
    try:
        values = {name: json.loads(entries[name]) for name in ("model", *PREPROCESSING)}
        settings = relevant_settings({**values.pop("model"), **values})
        names = json.loads(entries.get("class_names", "null"))
        return ModelDescription(settings, None if names is None else tuple(map(str, names)))
    except (KeyError, ValueError, TypeError):
        return ModelDescription({}, None)
