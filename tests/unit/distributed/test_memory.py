"""Memory of a process whose networks run on the CPU; what it saves is measured by scripts/benchmark.py."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from focal.distributed.memory import compile_ahead

REPOSITORY = Path(__file__).resolve().parents[3]


class Counting(nn.Cell):
    compilations = 0

    def compile(self, *inputs):
        Counting.compilations += 1
        super().compile(*inputs)

    def construct(self, x):
        return x + 1


def test_a_cell_compiled_ahead_is_not_compiled_again():
    cell, x = Counting(), Tensor(np.zeros(3, np.float32))
    compile_ahead(cell, x)
    phases = set(cell.compile_cache)
    assert Counting.compilations == 1 and len(phases) == 1
    assert cell(x).asnumpy().tolist() == [1, 1, 1]
    assert set(cell.compile_cache) == phases


def test_nothing_is_compiled_ahead_in_pynative_mode(pynative_mode):
    class Refusing(nn.Cell):
        def compile(self, *inputs):
            raise AssertionError

    compile_ahead(Refusing(), Tensor(1.0, ms.float32))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be asked to give memory back")
def test_freed_memory_goes_back_to_the_system():
    code = (
        "import ctypes; from focal.distributed.memory import return_freed_memory\n"
        "libc = ctypes.CDLL(None); libc.malloc.restype = ctypes.c_void_p\n"
        "def resident(): return int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        "blocks = [libc.malloc(100_000) for _ in range(2000)]\n"
        "for block in blocks: ctypes.memset(block, 1, 100_000)\n"
        "for block in blocks[:-1]: libc.free(ctypes.c_void_p(block))\n"  # the last one pins the heap's end
        "before = resident(); return_freed_memory(); print(before - resident())"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY / "src", capture_output=True, text=True
    ).stdout
    assert int(printed) > 100_000_000


@pytest.mark.parametrize("machine, expected", [(24, "12GB"), (1, "1GB"), (1024, "64GB")])
def test_the_pool_is_half_the_machines_memory(machine, expected):
    code = (
        "import os; from mindspore import runtime; from focal.distributed import memory\n"
        f"os.sysconf = {{'SC_PAGE_SIZE': 1 << 12, 'SC_PHYS_PAGES': {machine} << 18}}.__getitem__\n"
        "runtime.set_memory = lambda **given: print(given)\n"
        "memory.use_one_memory_pool(); memory.use_one_memory_pool()"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY / "src", capture_output=True, text=True
    ).stdout
    assert printed == f"{{'init_size': '{expected}', 'increase_size': '1GB'}}\n"
