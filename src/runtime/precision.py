"""Which part of the network computes in which number format, and how the chip reports overflow."""

from __future__ import annotations

import os

import mindspore as ms


def saturates_on_overflow() -> bool:
    """Whether float16 overflow clamps to the largest number and raises a flag of the device, instead of giving inf.

    So does the Atlas training series (910A) always, and Atlas A2 (910B) with MS_ASCEND_CHECK_OVERFLOW_MODE set to
    SATURATION_MODE; every other target follows IEEE 754.
    """
    if ms.get_context("device_target") != "Ascend":
        return False
    chip = ascend_chip()
    if chip == "ascend910":
        return True
    return os.environ.get("MS_ASCEND_CHECK_OVERFLOW_MODE") == "SATURATION_MODE"


def ascend_chip() -> str:
    """Name of the Ascend chip as MindSpore's own overflow check tests it: ascend910 (910A), ascend910b, ..."""
    from mindspore._c_expression import MSContext

    return MSContext.get_instance().get_ascend_soc_version()
