"""Networks whose weights will not change any more: what depends on weights alone is computed once."""

from __future__ import annotations

from mindspore import Tensor, nn

from focal.config.schema import StepConfig
from focal.models.ascend_forms import use_ascend_forms
from focal.models.attention_choice import choose_attention
from focal.models.cpu_forms import use_cpu_forms
from focal.models.focal_attention import FocalAttention
from focal.models.precision import apply_precision


def fold_position_bias(network: nn.Cell) -> None:
    """Make the bias of each attention a constant of the compiled graph. Load weights first, then run the network.

    The network must not be trained or loaded again: the constant would not follow.
    """
    for _, cell in network.cells_and_names():
        if isinstance(cell, FocalAttention):
            cell.constant_bias = Tensor(cell.gather_bias().asnumpy())


def prepare_for_evaluation(network: nn.Cell, step: StepConfig) -> None:
    """Evaluation mode, folded bias, precision and attention as configured: the network that eval.py runs.

    Raises:
        UserError: this device cannot do what `step` asks for.
    """
    network.set_train(False)
    fold_position_bias(network)
    apply_precision(network, step.amp_level, step.keep_bn_fp32)
    choose_attention(network, step, training=False)


def prepare_for_export(network: nn.Cell) -> None:
    """Evaluation mode, folded bias, and the plain operations of no device, which other runtimes know and fuse."""
    network.set_train(False)
    fold_position_bias(network)
    use_cpu_forms(network, False)
    use_ascend_forms(network, False)
