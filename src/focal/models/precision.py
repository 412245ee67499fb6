"""Which part of the network computes in which number format.

| level | Dense, Conv, attention products | norms   | tokens between blocks |
| O0    | float32                         | float32 | float32               |
| O1    | float16                         | float32 | float32               |
| O2    | float16                         | float32 | float16               |
| O3    | float16                         | float16 | float16               |
| bf16  | bfloat16                        | float32 | float32               |

At every level weights, EMA weights, gradients after the backward pass, optimizer state, the position bias, the mean
over tokens and the loss are float32, and so is the softmax of the attention, but after products in float16 it reads and
writes float16 (see `WindowedProducts`). `keep_bn_fp32` makes O3 keep its norms in float32, which is then O2. What an
Ascend chip computes float32 products in is another matter: see `operator_precision`.
"""

from __future__ import annotations

import logging

import mindspore as ms
from mindspore import Tensor, nn

from focal.distributed.chip import refuse_unsupported
from focal.models.layers import DropPathFactors

logger = logging.getLogger("focal")

_PRODUCTS = (nn.Dense, nn.Conv2d, DropPathFactors)  # the factors of drop path multiply what products made
_NORMS = (nn.LayerNorm, nn.GroupNorm)
# A few coordinates, once per step: float16 would save nothing and blur the bias.
_ALWAYS_FLOAT32 = "position_bias"


class CastOutput(nn.Cell):
    """Runs another Cell and casts its result to `dtype`."""

    def __init__(self, cell: nn.Cell, dtype: ms.Type) -> None:
        super().__init__(auto_prefix=False)
        self.cell = cell
        self.dtype = dtype

    def construct(self, inputs: Tensor) -> Tensor:
        return self.cell(inputs).astype(self.dtype)


def apply_precision(network: nn.Cell, amp_level: str, keep_bn_fp32: bool = True) -> None:
    """Set the formats of a float32 network, in place, as the table above says. Must be called once, before it runs.

    Args:
        network: from `create_model`; its operations outside Dense, Conv and norms follow the type of their inputs.
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
    """Replace a child of `parent`; not by setting an attribute, which would rename the child's parameters."""
    parent._cells[name] = cell
