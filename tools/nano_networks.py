"""Small networks of both versions with real windows: what the tools compile where any network of the family will do."""

from __future__ import annotations

from typing import Any

# Maps of 8 x 8 and 4 x 4 tokens in windows of 2 x 2: keys are gathered, levels are pooled, a block follows a block.
NANO_V2: dict[str, Any] = {
    "arch": "focalv2_nano",
    "image_size": 32,
    "num_classes": 5,
    "patch_size": 4,
    "use_conv_embed": True,
    "embed_dim": 16,
    "depths": [2, 1],
    "num_heads": [2, 4],
    "window_size": 2,
    "focal_stages": [0, 1],
    "focal_levels": [2, 2],
    "focal_windows": [3, 3],
    "focal_topK": 9,
    "focal_pool": "fc",
    "expand_sizes": [1, 1],
    "drop_path_rate": 0.2,
    "mix_up": 0.0,
    "cutmix": 0.0,
    "enable_ema": False,
    "use_global_norm": False,
}
NANO_V1 = {**NANO_V2, "arch": "focal_nano", "use_conv_embed": False, "use_shift": True}
NANO_V1.pop("focal_topK")
# The fused attention takes heads of a multiple of 16 channels.
FLASH_HEADS = {"embed_dim": 32}
