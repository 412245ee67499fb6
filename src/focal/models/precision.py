"""Which part of the network computes in which number format, and how the chip reports overflow.

| level | Dense, Conv, attention products | norms   | tokens between blocks |
| O0    | float32                         | float32 | float32               |
| O1    | float16                         | float32 | float32               |
| O2    | float16                         | float32 | float16               |
| O3    | float16                         | float16 | float16               |
| bf16  | bfloat16                        | float32 | float32               |

At every level weights, their average, gradients after the backward pass, optimizer state, the softmax of the attention,
the position bias, the mean over tokens and the loss are float32. `keep_bn_fp32` makes O3 keep its norms in float32,
which is then O2.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

import mindspore as ms
from mindspore import Tensor, nn

from focal.errors import UserError

logger = logging.getLogger("focal")

_PRODUCTS = (nn.Dense, nn.Conv2d)
_NORMS = (nn.LayerNorm, nn.GroupNorm)
# Chips whose matrix unit knows float16 but neither float32 nor bfloat16: 910A, and 310P, which is for inference.
_FLOAT16_CHIPS = ("ascend910", "ascend310p", "ascend310")
# A few coordinates, once per step: float16 would save nothing and blur the bias.
_ALWAYS_FLOAT32 = "position_bias"


class CastOutput(nn.Cell):
    """Another Cell, whose result is handed on in `dtype`."""

    def __init__(self, cell: nn.Cell, dtype: ms.Type) -> None:
        super().__init__(auto_prefix=False)
        self.cell = cell
        self.dtype = dtype

    def construct(self, inputs: Tensor) -> Tensor:
        return self.cell(inputs).astype(self.dtype)


def apply_precision(network: nn.Cell, amp_level: str, keep_bn_fp32: bool = True) -> None:
    """Set the formats of a float32 network, in place, as the table above says. To be called once, before it runs.

    Args:
        network: from `create_model`; its own operations follow the type of their inputs.
        amp_level: O0, O1, O2, O3 or bf16.
        keep_bn_fp32: at O3, norms in float32.

    Raises:
        UserError: the chip of this process has no such format.
    """
    refuse_unsupported(amp_level)
    if amp_level == "O0":
        return
    half = ms.bfloat16 if amp_level == "bf16" else ms.float16
    half_stream = amp_level in ("O2", "O3")
    half_norms = amp_level == "O3" and not keep_bn_fp32
    for path, parent in list(network.cells_and_names()):
        if _ALWAYS_FLOAT32 in path.split("."):
            continue
        for name, cell in list(parent.name_cells().items()):
            if name == _ALWAYS_FLOAT32:
                continue
            if isinstance(cell, _PRODUCTS):
                cell.to_float(half)
                if isinstance(cell, nn.Conv2d) and not half_stream:
                    _replace(parent, name, CastOutput(cell, ms.float32))  # the tokens start here
            elif isinstance(cell, _NORMS):
                cell.to_float(half if half_norms else ms.float32)
                # The last norm feeds the mean over tokens.
                if half_stream and not half_norms and parent is not network:
                    _replace(parent, name, CastOutput(cell, half))
    logger.info("precision %s: %s products, %s norms, %s tokens", amp_level, half,
                half if half_norms else ms.float32, half if half_stream else ms.float32)  # fmt: skip


def _replace(parent: nn.Cell, name: str, cell: nn.Cell) -> None:
    """Put another Cell in the place of a child. Not by attribute: that would rename the parameters in it."""
    parent._cells[name] = cell


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


def saturates_on_overflow() -> bool:
    """Whether float16 overflow clamps to the largest number and raises a flag of the device, instead of giving inf.

    So does the Atlas training series (910A) always, and Atlas A2 (910B) with MS_ASCEND_CHECK_OVERFLOW_MODE set to
    SATURATION_MODE; every other target follows IEEE 754.
    """
    if not _on_ascend():
        return False
    if ascend_chip() == "ascend910":
        return True
    return os.environ.get("MS_ASCEND_CHECK_OVERFLOW_MODE") == "SATURATION_MODE"


def ascend_chip() -> str:
    """Name of the Ascend chip as MindSpore's own overflow check tests it: ascend910 (910A), ascend910b, ..."""
    from mindspore._c_expression import MSContext

    return MSContext.get_instance().get_ascend_soc_version()


def _on_ascend() -> bool:
    return ms.get_context("device_target") == "Ascend"
