"""The tensors of a training: which Parameters hold them, and under which names checkpoints do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Optional

import numpy as np
from mindspore import Parameter, Tensor, nn

from focal.checkpoint.files import EMA_PREFIX
from focal.models.layers import RANDOM_COUNTER


@dataclass(frozen=True)
class FlatBuffer:
    """A vector that holds several tensors, one after the other; a checkpoint holds each of them by its own name.

    Attributes:
        vector: float32 Parameter, as long as all the tensors together.
        shapes: name -> shape of each tensor, in order.
    """

    vector: Parameter
    shapes: Mapping[str, tuple[int, ...]]

    def tensors(self) -> dict[str, np.ndarray]:
        """The values by name: views of one copy of the vector."""
        values = self.vector.asnumpy().copy()  # asnumpy may be a view of what the next step writes
        ends = np.cumsum([_size(shape) for shape in self.shapes.values()])
        pieces = np.split(values, ends[:-1])
        return {name: piece.reshape(shape) for (name, shape), piece in zip(self.shapes.items(), pieces)}

    def set_tensors(self, values: Mapping[str, np.ndarray]) -> None:
        """Set the tensors that `values` names, of these shapes; others keep what they hold."""
        tensors = {**self.tensors(), **{name: values[name] for name in self.shapes if name in values}}
        pieces = [np.asarray(value, np.float32).reshape(-1) for value in tensors.values()]
        self.vector.set_data(Tensor(np.concatenate(pieces)))


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


@dataclass(frozen=True)
class TrainState:
    """What makes up the state of a training.

    Attributes:
        network: with the weights.
        parameters: Parameters that a checkpoint holds as they are: the network's, and counters.
        buffers: moments of the optimizer and EMA weights, `moment1.NAME` and `ema.NAME` for each trained NAME.
        trained: the trained weights once more, as the optimizer updates them; no checkpoint holds them twice.
        position: int32, steps done in the learning-rate schedule.
        random_counter: int32 counter behind dropout, of this rank; None without dropout.
    """

    network: nn.Cell
    parameters: list[Parameter]
    buffers: list[FlatBuffer]
    trained: list[FlatBuffer]
    position: Parameter
    random_counter: Optional[Parameter]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor that a checkpoint holds, by name."""
        shapes = {parameter.name: tuple(parameter.shape) for parameter in self.parameters}
        for buffer in self.buffers:
            shapes.update(buffer.shapes)
        return shapes

    def set_tensors(self, values: Mapping[str, np.ndarray]) -> None:
        """Set the tensors that `values` names; others keep what they hold."""
        for parameter in self.parameters:
            if parameter.name in values:
                parameter.set_data(Tensor(values[parameter.name], parameter.dtype))
        for buffer in self.buffers:
            buffer.set_tensors(values)
        self.weights_changed()

    def weights_changed(self) -> None:
        """Tell the optimizer that the network's weights were set from outside the training step."""
        weights = {parameter.name: parameter.asnumpy() for parameter in self.parameters}
        for buffer in self.trained:
            buffer.set_tensors(weights)


def collect_tensors(state: TrainState, world_size: int) -> dict[str, np.ndarray]:
    """Values of all tensors of the state, by name; the random counter as if there were one rank."""
    tensors = {}
    for parameter in state.parameters:
        value = parameter.asnumpy()
        if parameter.name == RANDOM_COUNTER:
            value = np.asarray(value // world_size, value.dtype)
        tensors[parameter.name] = value
    for buffer in state.buffers:
        tensors.update(buffer.tensors())
    return tensors


def weights_only(tensors: dict[str, np.ndarray], state: TrainState) -> dict[str, np.ndarray]:
    """The part of `collect_tensors` that evaluation and export need: raw and EMA weights."""
    names = {parameter.name for parameter in state.network.get_parameters()} - {RANDOM_COUNTER}
    return {name: value for name, value in tensors.items() if name in names or name.startswith(EMA_PREFIX)}
