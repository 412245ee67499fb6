"""The published models and the settings that their names imply (from configs/ of microsoft/Focal-Transformer)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from focal.config.schema import ConfigError

_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24), "drop_path_rate": 0.2},
    "small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24), "drop_path_rate": 0.3},
    "base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32), "drop_path_rate": 0.5},
}
_SHARED: dict[str, Any] = {
    "image_size": 224,
    "patch_size": 4,
    "window_size": 7,
    "focal_pool": "fc",
    "focal_stages": (0, 1, 2, 3),
    "focal_levels": (2, 2, 2, 2),
    "focal_windows": (7, 5, 3, 1),
    "expand_sizes": (3, 3, 3, 3),
}
# ImageNet-1K top-1 accuracy at 224 x 224 in per cent: Focal Transformer paper, table 2, and the authors' README.
PAPER_TOP1: dict[str, float] = {
    "focal_tiny_patch4_window7_224": 82.2,
    "focal_tiny_useconv_patch4_window7_224": 82.7,
    "focal_small_patch4_window7_224": 83.6,
    "focal_small_useconv_patch4_window7_224": 83.8,
    "focal_base_patch4_window7_224": 84.0,
    "focal_base_useconv_patch4_window7_224": 84.2,
    "focalv2_tiny_useconv_patch4_window7_224": 82.4,
    "focalv2_small_useconv_patch4_window7_224": 83.6,
    "focalv2_base_useconv_patch4_window7_224": 84.0,
}


def published_archs() -> list[str]:
    """Names of the nine published models, version 1 first."""
    return list(PAPER_TOP1)


def arch_defaults(arch: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Model settings that the name `arch` implies.

    A published name implies the whole network. Any other name implies at most `focal_version` and `use_conv_embed`,
    and requires `embed_dim`, `depths` and `num_heads` to be given.

    Args:
        arch: name of the model.
        given: the keys that YAML and flags give, which take precedence over what this returns.

    Raises:
        ConfigError: the name is not published and `given` does not describe the network or its version.
    """
    implied: dict[str, Any] = {}
    prefix = re.match(r"focal(v2)?_", arch)
    if prefix:
        implied = {"focal_version": 2 if prefix.group(1) else 1, "use_conv_embed": "_useconv" in arch}
    if arch in PAPER_TOP1:
        implied.update(_SHARED, **_SIZES[arch.split("_")[1]])
        if implied["focal_version"] == 2:
            implied["focal_topK"] = 128
        return implied
    missing = [name for name in ("embed_dim", "depths", "num_heads") if name not in given]
    if missing:
        raise ConfigError(
            f"arch: {arch!r} is not a published model{_nearest(arch)}; to define your own network, also set "
            f"{', '.join(missing)}"
        )
    if not prefix and "focal_version" not in given:
        raise ConfigError(
            f"focal_version: arch {arch!r} starts with neither focal_ nor focalv2_, so set focal_version to 1 or 2"
        )
    return implied


def _nearest(arch: str) -> str:
    names = difflib.get_close_matches(arch, PAPER_TOP1, n=1)
    return f" (nearest: {names[0]})" if names else ""
