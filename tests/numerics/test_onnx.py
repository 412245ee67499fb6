"""ONNX files against the authors' figures, run by ONNX Runtime."""

import numpy as np
import pytest

from focal.export.onnx_network import write_onnx
from tests.numerics.reference_cases import WITH_FIGURES, case_input, figures, loaded_network

onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is an optional extra")
pytest.importorskip("onnx", reason="onnx is an optional extra")


@pytest.mark.parametrize("name", WITH_FIGURES)
def test_onnx_logits_are_the_authors_for_any_batch_size(name, tmp_path, pynative_mode):
    images = case_input(name)
    write_onnx(loaded_network(name), images.shape[1:], tmp_path / "network.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "network.onnx"), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": images})
    np.testing.assert_allclose(logits, figures(name)["logits"], atol=1e-4, rtol=0)
    (single,) = session.run(None, {"images": images[:1]})  # the batch is dynamic
    np.testing.assert_allclose(single, figures(name)["logits"][:1], atol=1e-4, rtol=0)
