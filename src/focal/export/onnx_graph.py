"""A small builder of ONNX graphs; nodes and constants are named in order of creation."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import numpy as np

from focal.errors import UserError

# The first opset with LayerNormalization, and that of ONNX 1.12, the newest that Ascend's converter (ATC) documents.
OPSET = 17
IR_VERSION = 8  # of ONNX 1.12 as well


def import_optional(package: str) -> Any:
    """The module `onnx` or `onnxruntime`, which are optional dependencies.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(f"{package}: not installed, and ONNX files need it; run pip install onnx onnxruntime") from None


class OnnxGraph:
    """Nodes and constants of a graph under construction. Methods return the name of a node's output."""

    def __init__(self) -> None:
        self.onnx = import_optional("onnx")
        self.nodes: list[Any] = []
        self.constants: dict[bytes, str] = {}
        self.initializers: list[Any] = []

    def constant(self, value: np.ndarray) -> str:
        """The name of a constant; equal constants are stored once."""
        value = np.ascontiguousarray(value)
        key = f"{value.dtype}{value.shape}".encode() + value.tobytes()
        if key not in self.constants:
            name = f"constant_{len(self.constants)}"
            self.initializers.append(self.onnx.numpy_helper.from_array(value, name))
            self.constants[key] = name
        return self.constants[key]

    def node(self, operator: str, *inputs: str, outputs: Optional[Sequence[str]] = None, **attributes: Any) -> str:
        """Append a node; returns its first output."""
        outputs = list(outputs) if outputs else [f"{operator.lower()}_{len(self.nodes)}"]
        self.nodes.append(self.onnx.helper.make_node(operator, list(inputs), outputs, **attributes))
        return outputs[0]

    def reshape(self, x: str, *shape: int) -> str:
        """Reshape: 0 keeps a dimension, -1 is inferred."""
        return self.node("Reshape", x, self.constant(np.array(shape, np.int64)))

    def gather(self, x: str, table: np.ndarray) -> str:
        """Rows of axis 1 of x, by a table."""
        return self.node("Gather", x, self.constant(table.astype(np.int64)), axis=1)

    def transpose(self, x: str, *axes: int) -> str:
        return self.node("Transpose", x, perm=list(axes))

    def dense(self, x: str, weight: np.ndarray, bias: Optional[np.ndarray]) -> str:
        """x @ weight.T + bias, weight (out, in)."""
        product = self.node("MatMul", x, self.constant(weight.T))
        return product if bias is None else self.node("Add", product, self.constant(bias))

    def layer_norm(self, x: str, weight: np.ndarray, bias: np.ndarray, epsilon: float) -> str:
        return self.node("LayerNormalization", x, self.constant(weight), self.constant(bias), axis=-1, epsilon=epsilon)

    def gelu(self, x: str) -> str:
        """The exact GELU, x * (1 + erf(x / sqrt(2))) / 2.

        ONNX has an operator for it only from opset 20 on; ONNX Runtime fuses these nodes into one.
        """
        one, half, root = (self.constant(np.array(value, np.float32)) for value in (1.0, 0.5, math.sqrt(2.0)))
        twice_cdf = self.node("Add", self.node("Erf", self.node("Div", x, root)), one)
        return self.node("Mul", self.node("Mul", x, twice_cdf), half)

    def model(
        self, inputs: dict[str, Sequence[Any]], outputs: dict[str, Sequence[Any]], metadata: Mapping[str, str]
    ) -> Any:
        """The finished model; shapes may hold names of dynamic dimensions, `metadata` becomes its metadata_props."""
        helper, float32 = self.onnx.helper, self.onnx.TensorProto.FLOAT
        infos = [
            [helper.make_tensor_value_info(name, float32, list(shape)) for name, shape in side.items()]
            for side in (inputs, outputs)
        ]
        graph = helper.make_graph(self.nodes, "focal_transformer", *infos, initializer=self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        helper.set_model_props(model, dict(metadata))
        self.onnx.checker.check_model(model)
        return model
