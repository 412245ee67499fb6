"""A network whose weights will not change any more: what depends on weights alone is computed once."""

from __future__ import annotations

from mindspore import Tensor, nn

from focal.config.schema import StepConfig
from focal.models.focal_attention import FocalAttention
from focal.models.layers import AddToSamples, NormalCdf
from focal.models.precision import apply_precision


def fold_position_bias(network: nn.Cell) -> None:
    """Make each attention's bias a constant of the compiled graph. Load weights before, and run the network after.

    The network must not be trained or reloaded afterwards: the constant would not follow.
    """
    for _, cell in network.cells_and_names():
        if isinstance(cell, FocalAttention):
            cell.constant_bias = Tensor(cell.gather_bias().asnumpy())


def prepare_for_evaluation(network: nn.Cell, step: StepConfig) -> None:
    """Evaluation mode, folded bias, and the precision of `amp_level`: the network as eval.py runs it."""
    network.set_train(False)
    fold_position_bias(network)
    apply_precision(network, step.amp_level, step.keep_bn_fp32)


def prepare_for_export(network: nn.Cell) -> None:
    """Evaluation mode, folded bias, and the operations that other runtimes know and fuse (Erf, broadcasting additions)
    in place of those that are faster in MindSpore on a CPU."""
    network.set_train(False)
    fold_position_bias(network)
    for _, cell in network.cells_and_names():
        if isinstance(cell, NormalCdf):
            cell.use_polynomial = False
        elif isinstance(cell, AddToSamples):
            cell.repeat_first = False
