"""The toy network of these tests: in a module of its own, where MindSpore's compiler finds what its code refers to."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn


class ToyNetwork(nn.Cell):
    """Two matrix products with a tanh between: (B, 6), or images (B, 3, 1, 2), -> (B, 4)."""

    def __init__(self, seed: int = 0, with_counter: bool = False) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        self.first = Parameter(Tensor(rng.standard_normal((6, 5)).astype(np.float32)), name="first.weight")
        self.bias = Parameter(Tensor(rng.standard_normal(5).astype(np.float32)), name="first.bias")
        self.second = Parameter(Tensor(rng.standard_normal((5, 4)).astype(np.float32)), name="second.weight")
        if with_counter:
            self.random_counter = Parameter(Tensor(0, ms.int32), name="random_counter", requires_grad=False)

    def construct(self, inputs: Tensor) -> Tensor:
        return ms.ops.matmul(ms.ops.tanh(ms.ops.matmul(inputs.reshape((-1, 6)), self.first) + self.bias), self.second)
