"""Graph kernels of a CPU: MindSpore fuses chains of elementwise operations, and its compiler AKG makes a kernel of each.

Every other operation of a chain reads and writes the whole tensor in main memory; the kernel does so once. Matrix
products, gathers and reductions are left to MindSpore's own kernels: those that AKG makes for them are slower.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

# Operations that may be fused with each other. Others are replaced by these first: where MindSpore does so by itself
# (BiasAddGrad, AddN, Square), and the sigmoid of the exact GELU.
FUSED = ("Add", "Sub", "Mul", "Div", "RealDiv", "Reciprocal", "Neg", "Exp")
_FLAGS = f"--opt_level=2 --enable_cluster_ops_only={','.join(FUSED)} --enable_expand_ops=Sigmoid"


def has_graph_kernels() -> bool:
    """Whether this MindSpore can make graph kernels for a CPU: its wheel has AKG, which needs the package decorator."""
    found = importlib.util.find_spec("mindspore")
    if found is None or found.origin is None or importlib.util.find_spec("decorator") is None:
        return False
    return (Path(found.origin).parent / "lib" / "plugin" / "cpu" / "libakg.so").is_file()


def use_graph_kernels() -> None:
    """Have this process fuse elementwise operations in what it compiles from now on.

    Variables that are set already are kept: MS_DEV_GRAPH_KERNEL_FLAGS, and MS_COMPILER_CACHE_PATH, where kernels are
    kept; by default they go to a folder that is removed when the process ends.
    """
    os.environ.setdefault("MS_DEV_GRAPH_KERNEL_FLAGS", _FLAGS)
    if "MS_COMPILER_CACHE_PATH" not in os.environ:  # AKG's own default is the working directory
        folder = os.environ["MS_COMPILER_CACHE_PATH"] = tempfile.mkdtemp(prefix="focal-graph-kernels-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
