"""ONNX files against the authors' figures, run by ONNX Runtime."""

import numpy as np
import pytest

from focal.export.onnx_network import write_onnx
from tests.numerics.reference_cases import WITH_FIGURES, case_input, figures, loaded_network

onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is an optional extra")
onnx = pytest.importorskip("onnx", reason="onnx is an optional extra")


@pytest.mark.parametrize("name", WITH_FIGURES)
def test_onnx_logits_are_the_authors_for_any_batch_size(name, tmp_path, pynative_mode):
    images = case_input(name)
    write_onnx(loaded_network(name), images.shape[1:], tmp_path / "network.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "network.onnx"), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": images})
    np.testing.assert_allclose(logits, figures(name)["logits"], atol=1e-4, rtol=0)
    (single,) = session.run(None, {"images": images[:1]})  # the batch is dynamic
    np.testing.assert_allclose(single, figures(name)["logits"][:1], atol=1e-4, rtol=0)


def test_the_file_is_one_that_ascends_converter_documents(tmp_path, pynative_mode):
    """ATC knows ONNX 1.12, which is opset 17 and IR version 8; ONNX Runtime still makes one operator of each GELU."""
    network = loaded_network("nano_v2")
    write_onnx(network, (3, 64, 64), tmp_path / "network.onnx", {"key": "text"})
    model = onnx.load(tmp_path / "network.onnx")
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)] and model.ir_version == 8
    assert [(entry.key, entry.value) for entry in model.metadata_props] == [("key", "text")]
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(str(tmp_path / "network.onnx"), options, providers=["CPUExecutionProvider"])
    operators = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    blocks = sum(len(stage.blocks) for stage in network.layers)
    assert "Erf" not in operators and sum(name.endswith("Gelu") for name in operators) == blocks
