"""A program: compiles a training step of a network that breaks the graph bars, and prints the file of its graph."""

from __future__ import annotations

import sys

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from focal.config import load_config
from focal.distributed.device import Device, setup_device
from focal.models.gathers import index_tensor
from focal.trainers.setup import build_network, build_train_step
from tests.unit.tools.graph_settings import BATCH, NANO_V2
from tools.graph_report.dump import compile_cell


class ForbiddenMlp(nn.Cell):
    """An MLP that moves its data in the ways that the bars forbid; the shape is kept."""

    def __init__(self, mlp: nn.Cell, tokens: int) -> None:
        super().__init__()
        self.mlp = mlp
        self.reverse = index_tensor(np.arange(tokens)[::-1])
        self.wide_reverse = Tensor(np.arange(tokens)[::-1].copy(), ms.int64)

    def construct(self, x: Tensor) -> Tensor:
        batch, tokens, channels = x.shape
        x = ops.gather(x, self.reverse, 1)  # its own gradient is a scatter
        index = ops.tile(self.reverse.reshape((1, tokens, 1)), (batch, 1, channels))
        x = ops.gather_elements(x, 1, index)  # an index for each number
        x = x + ops.gather(x, self.wide_reverse, 1)
        for _ in range(3):
            x = ops.relu(x.transpose((0, 2, 1)))
            x = ops.relu(x.transpose((0, 2, 1)))
        return self.mlp(x + ops.tile(ops.strided_slice(x, (0, 0, 0), (batch, tokens, 1), (1, 1, 1)), (1, 1, channels)))


def main() -> None:
    one_stage = {key: value[:1] if isinstance(value, list) else value for key, value in NANO_V2.items()}
    config = load_config({**one_stage, "batch_size": BATCH}, {"device_target": "CPU"})
    setup_device(config.run)
    network = build_network(config)
    block = network.layers[0].blocks[0]
    block.mlp = ForbiddenMlp(block.mlp, 64)
    bias = block.attn.position_bias
    bias.use_coordinates([np.tile(level.asnumpy(), (4, 1)) for level in bias.coordinates])  # pairs, not distinct ones
    step = build_train_step(config, network, 1000, Device())
    images = Tensor(np.zeros((BATCH, 3, 32, 32), np.float32))
    sys.stdout.write(f"{compile_cell(step, images, Tensor(np.zeros((BATCH, 5), np.float32)))}\n")


if __name__ == "__main__":
    main()
