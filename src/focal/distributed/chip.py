"""What an Ascend chip can compute in, and how it reports overflow."""

from __future__ import annotations

import os
from dataclasses import dataclass

from focal.errors import UserError

# Chips whose matrix unit knows float16 but neither float32 nor bfloat16: 910A, and 310P, which is for inference.
_FLOAT16_CHIPS = ("ascend910", "ascend310p", "ascend310")


def refuse_unsupported(amp_level: str) -> None:
    """Raise `UserError` if the Ascend chip of this process lacks the format of `amp_level`."""
    if amp_level == "bf16" and _on_ascend() and ascend_chip() in _FLOAT16_CHIPS:
        raise UserError(
            f"amp_level: bf16 needs an Atlas A2 (910B) or later; this chip, {ascend_chip()}, has no bfloat16; "
            "use O1 with is_dynamic_loss_scale True"
        )


@dataclass(frozen=True)
class OperatorPrecision:
    """What to set in `mindspore.device_context.ascend.op_precision`.

    Attributes:
        mode: for `precision_mode`.
        has_hf32: whether the chip may compute float32 products in HF32, a shorter format, and must be told not to.
    """

    mode: str
    has_hf32: bool


def operator_precision(chip: str) -> OperatorPrecision:
    """The setting with which operators compute in the type of their inputs, as far as this chip can.

    Set on every chip, since MindSpore's defaults differ between chips, and between what it documents and what it does.

    Args:
        chip: as `ascend_chip` names it.
    """
    if chip in _FLOAT16_CHIPS:
        # Their matrix unit has no float32: must_keep_origin_dtype makes a float32 product an error there. With this
        # mode products are computed in float16, and all else, norms and softmax included, in its own type.
        return OperatorPrecision("allow_fp32_to_fp16", has_hf32=False)
    # With allow_fp32_to_fp16 float32 products would be computed in HF32 here.
    return OperatorPrecision("must_keep_origin_dtype", has_hf32=True)


def has_flash_attention() -> bool:
    """Whether the device has MindSpore's fused attention: an Ascend of the generation A2 (910B) or later."""
    return _on_ascend() and ascend_chip() not in _FLOAT16_CHIPS


def resolve_jit_level(setting: str, chip: str) -> str:
    """The `jit_level` to give MindSpore, or "" to leave MindSpore's default; docs/performance.md gives the reasons.

    Args:
        setting: the configuration's: auto, O0, O1 or O2.
        chip: as `ascend_chip` names it; "" on a CPU or GPU. On a CPU, O1 turns on `cpu_graph_kernels`.
    """
    if setting != "auto":
        return setting
    if chip == "ascend910":
        return "O2"  # MindSpore's own default, and mindcv's in the figures that it publishes for this chip
    if not chip or chip in _FLOAT16_CHIPS:
        return ""  # on chips for inference nothing is known that would beat the default
    return "O1"  # by default O0: one launch from the host for every operator, and none of them fused


def saturates_on_overflow() -> bool:
    """Whether float16 overflow clamps to the largest number and raises a flag of the device, instead of giving inf.

    The Atlas training series (910A) always does, and Atlas A2 (910B) with MS_ASCEND_CHECK_OVERFLOW_MODE set to
    SATURATION_MODE; every other target follows IEEE 754.
    """
    if not _on_ascend():
        return False
    if ascend_chip() == "ascend910":
        return True
    return os.environ.get("MS_ASCEND_CHECK_OVERFLOW_MODE") == "SATURATION_MODE"


def ascend_chip() -> str:
    """Name of the Ascend chip, by which MindSpore itself tells chips apart: ascend910 (910A), ascend910b, ..."""
    from mindspore._c_expression import MSContext

    return MSContext.get_instance().get_ascend_soc_version()


def _on_ascend() -> bool:
    import mindspore as ms

    return ms.get_context("device_target") == "Ascend"
