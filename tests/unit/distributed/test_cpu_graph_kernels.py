"""Fused elementwise operations on a CPU: right, tidy, and refused by name where they cannot be had."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from focal.distributed.cpu_graph_kernels import use_graph_kernels
from focal.errors import UserError

SOURCES = Path(__file__).resolve().parents[3] / "src"
PROGRAM = """
import os
import numpy as np
import mindspore as ms
from mindspore import Tensor, nn, ops
from focal.config.schema import RunConfig
from focal.distributed.device import setup_device
setup_device(RunConfig(device_target="CPU", jit_level="O1"))
from focal.models.layers import GELU
gradient = ops.GradOperation(sens_param=True)(GELU())
x = np.linspace(-6, 6, 4096, dtype=np.float32).reshape(8, 512)
np.save("gradient.npy", ms.jit(gradient)(Tensor(x), Tensor(np.ones_like(x))).asnumpy())
kernels = os.listdir(os.environ["MS_COMPILER_CACHE_PATH"] + "/akg_kernel_meta")
print(*[name for name in kernels if name.endswith(".so")])
print(os.environ["MS_COMPILER_CACHE_PATH"])
"""


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="MindSpore has AKG for a CPU on Linux and x86-64"
)
def test_the_gradient_of_gelu_is_fused_and_right(tmp_path: Path) -> None:
    import numpy as np
    from scipy.special import ndtr

    environment = {name: value for name, value in os.environ.items() if name != "MS_COMPILER_CACHE_PATH"}
    out = subprocess.check_output(
        [sys.executable, "-c", PROGRAM], env={**environment, "PYTHONPATH": str(SOURCES)}, cwd=tmp_path, text=True
    )
    kernels, folder = out.splitlines()[-2:]
    assert any("_Mul_Add_Mul_Add_" in kernel for kernel in kernels.split()), kernels
    x = np.linspace(-6, 6, 4096, dtype=np.float32).astype(np.float64).reshape(8, 512)
    expected = ndtr(x) + x * np.exp(-0.5 * x * x) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(np.load(tmp_path / "gradient.npy"), expected, atol=1e-6)
    assert not Path(folder).exists()
    assert os.listdir(tmp_path) == ["gradient.npy"], "compiling left files in the working directory"


@pytest.mark.parametrize(
    ("missing", "message"),
    [("decorator", "pip install decorator"), ("mindspore", "needs a MindSpore with AKG")],
    ids=["decorator", "akg"],
)
def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, missing: str, message: str) -> None:
    find_spec = importlib.util.find_spec

    def find_others(name: str, *rest: Any) -> Any:
        return None if name == missing else find_spec(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", find_others)
    with pytest.raises(UserError, match=message):
        use_graph_kernels()
