"""What `setup_device` sets: target, precision and time limits; and the end of a failed process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest

from focal.config import load_config
from focal.distributed import device as device_module
from focal.distributed.device import communication_timeouts, setup_device
from focal.distributed.environment import Launch
from focal.distributed.progress_watch import FIRST_STEP_TIMEOUT
from focal.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[3]


def test_one_process_on_a_cpu_is_rank_0_of_1() -> None:
    device = setup_device(load_config({"device_target": "CPU"}).run)
    assert (device.rank, device.world_size, device.local_rank, device.local_size) == (0, 1, 0, 1)
    assert device.is_main and device.target == "CPU"
    assert ms.get_context("mode") == ms.GRAPH_MODE


def test_a_missing_device_is_one_clear_error() -> None:
    with pytest.raises(UserError, match="device_target: Ascend .* use --device_target CPU") as caught:
        setup_device(load_config({"device_target": "Ascend"}).run)
    assert "\n" not in str(caught.value)


def test_several_devices_without_workers_are_refused() -> None:
    with pytest.raises(UserError, match="device_num: 2, but no workers were started"):
        setup_device(load_config({"device_target": "CPU", "device_num": 2}).run)


def test_importing_the_distributed_package_imports_no_framework() -> None:
    modules = "environment, launcher, device, dynamic_cluster, logging, versions"
    code = (
        f"import sys, focal; from focal.distributed import {modules}; from focal.cloud import storage, moxing, c2net\n"
        "sys.exit('mindspore' in sys.modules or 'c2net' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY / "src").returncode == 0


def test_numpy_2_is_refused_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "__version__", "2.0.1")
    with pytest.raises(UserError, match=r"numpy 2\.0\.1 does not work"):
        setup_device(load_config({"device_target": "CPU"}).run)


def test_ranks_on_a_cpu_share_the_cores_of_their_server(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = Launch("mpi", world_size=4, rank=0, device_id=0)
    shares: list[int] = []
    monkeypatch.setattr(device_module, "detect_launch", lambda environ: launch)
    monkeypatch.setattr(device_module, "share_cores", shares.append)
    monkeypatch.setattr(device_module, "_join_group", lambda *given: device_module.Device(world_size=4))
    keys = {"device_target": "CPU", "device_num": 4}
    setup_device(load_config(keys).run)
    setup_device(load_config({**keys, "node_num": 2, "master_port": 8118}).run)
    assert shares == [4, 2]


@pytest.mark.parametrize("step_timeout", [0.0, 1.0, 1800.0, 7200.0, 1e6])
def test_hccl_waits_as_long_as_we_do_within_the_ranges_of_every_chip(step_timeout: float) -> None:
    seconds = {name: int(value) for name, value in communication_timeouts(step_timeout).items()}
    connect, execute = seconds.pop("HCCL_CONNECT_TIMEOUT"), seconds.pop("HCCL_EXEC_TIMEOUT")
    assert not seconds
    assert 120 <= connect <= 7200
    assert 0 < execute <= 17340 and execute % 68 == 0  # a 910A rounds down to a multiple of 68
    longest = max(FIRST_STEP_TIMEOUT, step_timeout)
    assert connect > longest or connect == 7200
    assert execute > longest or execute == 17340


# What setup_device leaves in the environment, printed by a process that has not imported MindSpore before.
SHOW_TIMEOUTS = """
import os, sys
from focal.config import load_config
from focal.distributed.device import setup_device
from focal.errors import UserError
try:
    setup_device(load_config({"device_target": sys.argv[1]}).run)
except UserError:
    pass
print(os.environ.get("HCCL_CONNECT_TIMEOUT"), os.environ.get("HCCL_EXEC_TIMEOUT"))
"""


@pytest.mark.parametrize(
    ("target", "given", "expected"),
    [
        ("Ascend", {}, "3660 3672"),
        ("Ascend", {"HCCL_CONNECT_TIMEOUT": "300"}, "300 3672"),
        ("Ascend", {"HCCL_EXEC_TIMEOUT": "680"}, "3660 680"),
        ("CPU", {}, "600 None"),  # what MindSpore sets when it is imported
    ],
)
def test_hccl_timeouts_are_set_before_mindspore_sets_its_own(target: str, given: dict[str, str], expected: str) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HCCL_")}
    command = [sys.executable, "-c", SHOW_TIMEOUTS, target]
    result = subprocess.run(
        command, cwd=REPOSITORY / "src", env={**clean, **given}, capture_output=True, text=True, timeout=60
    )
    assert result.stdout.splitlines()[-1] == expected, result.stderr


def test_the_chip_decides_what_operators_may_compute_in(monkeypatch: pytest.MonkeyPatch) -> None:
    from mindspore.device_context.ascend import op_precision

    from focal.distributed import chip

    calls: dict[str, object] = {}
    for name in ("precision_mode", "conv_allow_hf32", "matmul_allow_hf32"):
        monkeypatch.setattr(op_precision, name, lambda value, name=name: calls.update({name: value}))
    monkeypatch.setattr(chip, "ascend_chip", lambda: "ascend910b")
    device_module._set_precision()
    assert calls == {
        "precision_mode": "must_keep_origin_dtype",
        "conv_allow_hf32": False,
        "matmul_allow_hf32": False,
    }
    calls.clear()
    monkeypatch.setattr(chip, "ascend_chip", lambda: "ascend910")
    device_module._set_precision()
    assert calls == {"precision_mode": "allow_fp32_to_fp16"}


@pytest.mark.parametrize(
    ("keys", "chip", "level", "calls"),
    [
        ({}, "ascend910", "O2", [("context", {"jit_level": "O2"})]),
        ({}, "ascend910b", "O1", [("context", {"jit_level": "O1"})]),
        (
            {"jit_level": "O0", "kernel_launch_group": 2}, "ascend910b", "O0",
            [("context", {"jit_level": "O0"}), ("launch", (2, 8))],
        ),
        ({"device_target": "CPU"}, "not asked for", "", []),
        (
            {"device_target": "CPU", "jit_level": "O1"}, "not asked for", "O1",
            [("graph kernels",), ("context", {"jit_level": "O1"})],
        ),
        ({"device_target": "CPU", "jit_level": "O0"}, "not asked for", "O0", [("context", {"jit_level": "O0"})]),
    ],
)  # fmt: skip
def test_jit_level_and_launch_group_reach_mindspore(
    monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], chip: str, level: str, calls: list[Any]
) -> None:
    from focal.distributed import chip as chip_module
    from focal.distributed import cpu_graph_kernels

    made: list[Any] = []
    monkeypatch.setattr(cpu_graph_kernels, "use_graph_kernels", lambda: made.append(("graph kernels",)))
    monkeypatch.setattr(chip_module, "ascend_chip", lambda: chip)
    monkeypatch.setattr(ms, "set_context", lambda jit_config: made.append(("context", jit_config)))
    monkeypatch.setattr(ms.runtime, "set_kernel_launch_group", lambda *given: made.append(("launch", given)))
    assert device_module._set_compilation(load_config({"device_target": "Ascend", **keys}).run) == level
    assert made == calls


def test_graph_kernels_of_a_cpu_are_not_combined_with_compile_cache(tmp_path: Path) -> None:
    keys = {"device_target": "CPU", "jit_level": "O1", "compile_cache": str(tmp_path)}
    with pytest.raises(UserError, match="compile_cache: cannot keep the graph kernels of jit_level O1 on a CPU"):
        device_module._set_compilation(load_config(keys).run)


def test_a_failed_rank_that_cannot_end_is_ended() -> None:
    """Stands in for MindSpore, which waits at the end of the process for a scheduler that has gone."""
    code = (
        "import atexit, time\n"
        "from focal.distributed import collectives, device\n"
        "device.FAILED_EXIT_TIMEOUT = 1\n"
        "collectives.set_group(0, 2)\n"
        "atexit.register(time.sleep, 60); atexit.register(device._limit_exit)\n"
        "raise SystemExit(2)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY / "src", timeout=30)
    assert result.returncode == -signal.SIGALRM
