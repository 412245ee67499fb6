"""Small networks of both versions with real windows, for tests of compiled graphs."""

from __future__ import annotations

from tools.nano_networks import NANO_V1, NANO_V2

__all__ = ["BATCH", "NANO_V1", "NANO_V2"]

# A prime that divides no size of the networks: a tensor with a multiple of it holds a value per image.
BATCH = 101
