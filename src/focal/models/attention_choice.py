"""Decides at the start of a job how the attention is computed: by products, or by the fused operator (flash).

Nobody has run the operator on this network's shapes beforehand, and documents disagree about it. So a job compares it
with the products first, on random numbers and on the very device, and takes it only where both agree.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from focal.config.schema import StepConfig
from focal.distributed.chip import has_flash_attention
from focal.errors import UserError
from focal.models.flash_attention import HEAD_SIZE_STEP, MOST_HEADS
from focal.models.focal_attention import FocalAttention, WindowedProducts
from focal.models.focal_keys import MASK_VALUE
from focal.models.gathers import MergeHeads

logger = logging.getLogger("focal")

BATCH = 4  # samples of the comparison: enough for sums over a batch
BIAS_GRADIENT = "gradient of the bias"
GRADIENTS = ("gradient of the queries", "gradient of the keys", "gradient of the values", BIAS_GRADIENT)
# Largest relative difference of flash from the products, |a - b| / |b| over all numbers of a tensor: both round to the
# same format in different places, which gives about 0.001 in float16 and 0.008 in bfloat16. An input that means
# something else gives 0.1 and more.
TOLERANCE = {ms.float16: 0.01, ms.bfloat16: 0.05}


@dataclass(frozen=True)
class Verdict:
    """What was found about an attention.

    Attributes:
        refusal: why flash cannot compute it; empty: it can.
        operator_gives_bias_gradient: see `FlashAttention`.
        difference: largest relative difference from the products, where they were compared.
    """

    refusal: str = ""
    operator_gives_bias_gradient: bool = False
    difference: float = 0.0


def choose_attention(network: nn.Cell, step: StepConfig, training: bool) -> None:
    """Let the attentions of `network` use what `step.attention` asks for, and say so in one line of the log.

    Args:
        network: with its final tables and precision, before it is compiled.
        step: its `attention` and `amp_level`.
        training: gradients will be needed.

    Raises:
        UserError: `attention` is flash, and the chip, the precision or a size of the network does not allow it, or
            its results differ from those of the products.
    """
    attentions = [cell for _, cell in network.cells_and_names() if isinstance(cell, FocalAttention)]
    if step.attention == "products":
        logger.info("attention: products, as configured")
        return
    refusal = _refuse_job(step.amp_level)
    verdicts = [Verdict(refusal)] * len(attentions)
    if not refusal:
        verdicts = _try_flash(attentions, ms.bfloat16 if step.amp_level == "bf16" else ms.float16, training)
    refusals = "; ".join(dict.fromkeys(verdict.refusal for verdict in verdicts if verdict.refusal))
    if refusals and step.attention == "flash":
        raise UserError(f"attention: flash cannot be used: {refusals}; use auto or products")
    logger.info("attention: %s", "; ".join(filter(None, (_describe(verdicts, training), refusals))))


def _describe(verdicts: list[Verdict], training: bool) -> str:
    """What is used, and what the comparison found, for the log."""
    used = [verdict for verdict in verdicts if not verdict.refusal]
    if not used:
        return "products"
    blocks = "flash" if len(used) == len(verdicts) else f"flash in {len(used)} of {len(verdicts)} blocks"
    compared = "output and gradients differ" if training else "output differs"
    text = f"{blocks}; its {compared} from those of products by at most {max(v.difference for v in used):.1e}"
    if training and not all(verdict.operator_gives_bias_gradient for verdict in used):
        text += "; its gradient of the bias is wrong, so products compute that"
    return text


def _refuse_job(amp_level: str) -> str:
    """Why the operator can compute no attention in this process; empty: it can."""
    if not has_flash_attention():
        return "flash exists on Atlas A2 (910B) and later only"
    if amp_level == "O0":
        return "flash has no float32, which amp_level O0 asks for"
    return ""


def _refuse_size(attention: FocalAttention) -> str:
    """Why the operator cannot compute this attention; empty: it can."""
    groups, heads = attention.tables.shape[0], attention.heads
    size = attention.proj.in_channels // heads
    if groups * heads > MOST_HEADS:
        return f"{heads} heads in {groups} windows are more than the {MOST_HEADS} heads of flash"
    if size % HEAD_SIZE_STEP:
        return f"heads of {size} channels are not a multiple of {HEAD_SIZE_STEP}, as flash demands"
    if attention.windowed_products.attn_drop.rate:
        return f"flash has no attn_drop_rate, which is {attention.windowed_products.attn_drop.rate}"
    return ""


def _try_flash(attentions: list[FocalAttention], half: ms.Type, training: bool) -> list[Verdict]:
    """Use flash in every attention that it can compute. Attentions with the same tables are alike: one is compared."""
    verdicts: dict[int, Verdict] = {}
    for attention in attentions:
        key = id(attention.tables)
        if key not in verdicts:
            refusal = _refuse_size(attention)
            verdicts[key] = Verdict(refusal) if refusal else judge(attention, half, training)
        if verdicts[key].refusal:
            continue
        flash = attention.use_flash(verdicts[key].operator_gives_bias_gradient)
        if attention.constant_bias is not None:
            flash.fold_bias(attention.constant_bias.asnumpy(), half)
    return [verdicts[id(attention.tables)] for attention in attentions]


def judge(attention: FocalAttention, half: ms.Type, training: bool) -> Verdict:
    """Compare flash with the products on random numbers, on the device of this process.

    Args:
        attention: one that flash can compute by its size.
        half: the type of queries, keys and values.
        training: compare gradients as well.
    """
    for operator_gives_bias_gradient in (True, False):
        differences = relative_differences(attention, half, training, operator_gives_bias_gradient)
        wrong = [name for name, difference in differences.items() if not difference <= TOLERANCE[half]]
        if wrong != [BIAS_GRADIENT]:
            break
    if wrong:
        listed = ", ".join(f"{name} by {differences[name]:.2g}" for name in wrong)
        return Verdict(f"flash differs from products: {listed}")
    return Verdict("", operator_gives_bias_gradient, max(differences.values()))


def relative_differences(
    attention: FocalAttention, half: ms.Type, training: bool, operator_gives_bias_gradient: bool
) -> dict[str, float]:
    """|flash - products| / |products| of the output and, in training, of each gradient; by name."""
    rng = np.random.default_rng(0)
    tables, channels = attention.tables, attention.proj.in_channels
    groups, queries, keys = tables.shape
    bias = rng.standard_normal((1, tables.heads, groups, queries, keys)).astype(np.float32)
    bias = np.where(tables.is_hidden, np.float32(MASK_VALUE), bias).reshape(1, -1, queries, keys)
    qkv = Tensor(rng.standard_normal((BATCH, sum(tables.tokens), 3 * channels)), half)
    weight = Tensor(rng.standard_normal((BATCH, groups * queries, channels)), ms.float32)
    # The operator goes first: an output that it leaves as it was must not hold what the products left in that memory.
    flash = attention.make_flash(operator_gives_bias_gradient)
    products = WindowedProducts(attention.windowed_products.scale, tables.split_heads, nn.Identity())
    results = [
        _outputs(cell, qkv, Tensor(bias), weight, training)
        for cell in (flash, MergedProducts(products, tables.merge_heads))
    ]
    return {
        name: float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))
        for name, actual, expected in zip(("output", *GRADIENTS), *results)
    }


class MergedProducts(nn.Cell):
    """Attention by products, from the inputs of flash to its output."""

    def __init__(self, products: WindowedProducts, merge_heads: MergeHeads) -> None:
        super().__init__()
        self.products, self.merge_heads = products, merge_heads

    def construct(self, qkv: Tensor, bias: Tensor) -> tuple[Tensor]:
        return (self.merge_heads(self.products(qkv, bias)[0]),)


def _outputs(cell: nn.Cell, qkv: Tensor, bias: Tensor, weight: Tensor, training: bool) -> list[np.ndarray]:
    """Output of `cell`, and the gradients of sum(output * weight) in the order of `GRADIENTS`, float64."""
    cell.set_train(training)
    if not training:
        return [_as_numpy(cell(qkv, bias)[0])]

    def loss(qkv: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        output = cell(qkv, bias)[0]
        return (output.astype(ms.float32) * weight).sum(), output

    (_, output), (dqkv, dbias) = ops.value_and_grad(loss, (0, 1), has_aux=True)(qkv, bias)
    return [_as_numpy(output), *np.split(_as_numpy(dqkv), 3, axis=-1), _as_numpy(dbias)]


def _as_numpy(tensor: Tensor) -> np.ndarray:
    return tensor.astype(ms.float32).asnumpy().astype(np.float64)
