"""What an arch name implies: the published models (after configs/ of microsoft/Focal-Transformer)."""

from __future__ import annotations

import difflib
import re
from typing import Any, Optional

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
# Top-1 on ImageNet-1K at 224 x 224 in per cent: Focal Transformer paper, table 2, and the authors' README.
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
_VERSION = re.compile(r"focal(v2)?_")


def published_archs() -> list[str]:
    """Names of the nine published models, version 1 first."""
    return list(PAPER_TOP1)


def arch_defaults(arch: str, given: dict[str, Any]) -> dict[str, Any]:
    """Model keys that `arch` implies, for those the user did not give.

    A published name implies the whole network. Any other name implies at most `focal_version` and `use_conv_embed`,
    and needs `embed_dim`, `depths` and `num_heads` beside it.

    Args:
        arch: model name.
        given: keys of YAML and flags together.

    Raises:
        ConfigError: neither published nor described, or no way to tell the version.
    """
    implied: dict[str, Any] = {}
    match = _VERSION.match(arch)
    if match:
        implied = {"focal_version": 2 if match.group(1) else 1, "use_conv_embed": "_useconv" in arch}
    if arch in PAPER_TOP1:
        implied.update(_SHARED, **_SIZES[arch.split("_")[1]])
        if implied["focal_version"] == 2:
            implied["focal_topK"] = 128
        return implied
    missing = [name for name in ("embed_dim", "depths", "num_heads") if name not in given]
    if missing:
        raise ConfigError(
            f"arch: {arch!r} is not a published model{_nearest(arch)}; a network of your own also needs "
            f"{', '.join(missing)}"
        )
    if "focal_version" not in given and not match:
        raise ConfigError(f"focal_version: arch {arch!r} does not start with focal_ or focalv2_, so set it to 1 or 2")
    return implied


def paper_top1(arch: str) -> Optional[float]:
    """Top-1 accuracy in per cent that the paper gives for `arch`, or None."""
    return PAPER_TOP1.get(arch)


def _nearest(arch: str) -> str:
    names = difflib.get_close_matches(arch, PAPER_TOP1, n=1)
    return f" (nearest: {names[0]})" if names else ""
