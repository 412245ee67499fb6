"""Graph kernels of a CPU: MindSpore fuses chains of elementwise operations; its compiler AKG makes a kernel of each.

Operation by operation, a chain such as GELU reads and writes whole tensors in main memory two dozen times; a kernel
does so once. All other operations are left to MindSpore's own kernels: with all that MindSpore fuses by default,
Focal-fast-T was slower than without.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import Optional

from focal.errors import UserError

# Operations that may be fused with each other, and with those that MindSpore replaces by these first (BiasAddGrad,
# AddN, Square). Exponentials are not among them: AKG's own errs by 5e-5, a thousand times as much as MindSpore's.
FUSED = ("Add", "Sub", "Mul", "Div", "RealDiv", "Reciprocal", "Neg")
_FLAGS = f"--opt_level=2 --enable_cluster_ops_only={','.join(FUSED)}"


def use_graph_kernels() -> None:
    """Have this process fuse elementwise operations in what it compiles from now on.

    Kernels are kept in a temporary folder, which is removed when the process ends by itself, or in
    MS_COMPILER_CACHE_PATH if that is set; MS_DEV_GRAPH_KERNEL_FLAGS replaces the choice of operations.

    Raises:
        UserError: AKG or the package that it needs is missing.
    """
    mindspore = _folder_of("mindspore")
    if mindspore is None or not (mindspore / "lib" / "plugin" / "cpu" / "libakg.so").is_file():
        raise UserError("jit_level: O1 on a CPU needs a MindSpore with AKG (Linux on x86-64); use jit_level auto")
    if importlib.util.find_spec("decorator") is None:
        raise UserError(
            "jit_level: O1 on a CPU needs the package decorator: pip install decorator; or use jit_level auto"
        )
    os.environ.setdefault("MS_DEV_GRAPH_KERNEL_FLAGS", _FLAGS)
    # Else AKG prints a line for each kernel, that it may not read its table of tilings; for a CPU this table is empty.
    os.environ.setdefault("AKG_WHITE_LIST_PATH", str(mindspore))
    if "MS_COMPILER_CACHE_PATH" not in os.environ:  # kernels would be kept in the working directory
        folder = os.environ["MS_COMPILER_CACHE_PATH"] = tempfile.mkdtemp(prefix="focal-graph-kernels-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    log = Path("dsa_transfrom.log").absolute()  # AKG writes it to the working directory whatever is set
    if not log.exists():
        atexit.register(log.unlink, missing_ok=True)


def _folder_of(package: str) -> Optional[Path]:
    found = importlib.util.find_spec(package)
    return None if found is None or found.origin is None else Path(found.origin).parent
