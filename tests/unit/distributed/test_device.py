"""The process group of one process: every function is there and changes nothing."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from focal.config import load_config
from focal.distributed import device as device_module
from focal.distributed.collectives import (
    TIMEOUT_EXIT_CODE,
    all_reduce_sum,
    barrier,
    broadcast_bytes,
    broadcast_parameters,
)
from focal.distributed.device import communication_timeouts, fuse_all_reduces, setup_device, shutdown
from focal.distributed.progress_watch import FIRST_STEP_TIMEOUT
from focal.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[3]


def test_setup_on_cpu() -> None:
    device = setup_device(load_config({"device_target": "CPU"}).run)
    assert (device.rank, device.world_size, device.local_rank, device.local_size) == (0, 1, 0, 1)
    assert device.is_main and device.target == "CPU"
    assert ms.get_context("mode") == ms.GRAPH_MODE


def test_functions_are_identities() -> None:
    values = np.array([[1.5, -2.0]], np.float32)
    summed = all_reduce_sum(values)
    assert summed.dtype == np.float32 and (summed == values).all() and summed is not values
    parameter = ms.Parameter(ms.Tensor([3, 4], ms.int32), name="p")
    broadcast_parameters([parameter])
    assert parameter.asnumpy().tolist() == [3, 4]
    barrier("nothing to wait for", timeout=0.0)
    shutdown()


def test_missing_device_is_one_clear_error() -> None:
    with pytest.raises(UserError, match="device_target: Ascend .* use --device_target CPU") as caught:
        setup_device(load_config({"device_target": "Ascend"}).run)
    assert "\n" not in str(caught.value)


def test_several_devices_without_workers() -> None:
    with pytest.raises(UserError, match="device_num: 2, but no workers were started"):
        setup_device(load_config({"device_target": "CPU", "device_num": 2}).run)


def test_importing_the_runtime_imports_no_framework() -> None:
    modules = "environment, launcher, device, dynamic_cluster, logging, versions"
    code = (
        f"import sys, focal; from focal.distributed import {modules}; from focal.cloud import storage, moxing, c2net\n"
        "sys.exit('mindspore' in sys.modules or 'c2net' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY / "src").returncode == 0


@pytest.mark.parametrize("data", [b"", b"abc", b"\x00\xff" * 5])
def test_bytes_arrive_filled_up_to_the_size(data: bytes) -> None:
    assert broadcast_bytes(data, 10) == data + b"\0" * (10 - len(data))


def errors_of_giving_up(code: str) -> str:
    """What a program writes to stderr before it ends by a time limit."""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY / "src", capture_output=True, text=True, timeout=30
    )
    assert result.returncode == TIMEOUT_EXIT_CODE
    return result.stderr


def test_a_wait_that_never_ends_ends_the_process() -> None:
    code = (
        "import time, logging; logging.basicConfig()\n"
        "from focal.distributed.collectives import waiting\n"
        "with waiting('the moon', 1.0): time.sleep(60)"
    )
    errors = errors_of_giving_up(code)
    assert "rank 0 waited 1 s for the moon and gives up" in errors


def test_training_without_progress_ends_the_process() -> None:
    code = (
        "import time, logging; logging.basicConfig()\n"
        "from focal.distributed.progress_watch import ProgressWatch\n"
        "watch = ProgressWatch(1.0, rank=3)\n"
        "watch.start()\n"
        "time.sleep(1.5)  # compiling: the limit is another one\n"
        "for _ in range(6): watch.beat(); time.sleep(0.3)\n"
        "time.sleep(60)"
    )
    errors = errors_of_giving_up(code)
    assert re.search(r"rank 3: no step finished for \d+ s \(step_timeout 1\)", errors)


def test_a_first_step_that_never_comes_ends_the_process() -> None:
    code = (
        "import time, logging; logging.basicConfig()\n"
        "from focal.distributed import progress_watch\n"
        "progress_watch.FIRST_STEP_TIMEOUT = 2.0\n"
        "progress_watch.ProgressWatch(1.0, rank=3).start()\n"
        "time.sleep(60)"
    )
    errors = errors_of_giving_up(code)
    assert re.search(r"rank 3: no step finished for \d+ s \(before the first step 2\)", errors)


@pytest.mark.parametrize("timeout", [0.0, 0.3])
def test_a_watch_that_is_off_or_stopped_ends_nothing(timeout: float) -> None:
    code = (
        "import time\n"
        "from focal.distributed.progress_watch import ProgressWatch\n"
        f"watch = ProgressWatch({timeout}, rank=3); watch.start()\n"
        "watch.beat()\n"
        "if watch._timeout: watch.stop()\n"
        "time.sleep(0.8)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY / "src", timeout=30).returncode == 0


def test_numpy_2_is_refused_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "__version__", "2.0.1")
    with pytest.raises(UserError, match=r"numpy 2\.0\.1 does not work"):
        setup_device(load_config({"device_target": "CPU"}).run)


def test_a_wait_that_ends_is_left_alone() -> None:
    imports = "import time\nfrom focal.distributed.collectives import waiting\n"
    code = imports + "with waiting('nothing', 0.2): pass\ntime.sleep(0.5)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY / "src", timeout=30).returncode == 0


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


def test_fusion_of_all_reduces_is_switched_on() -> None:
    from mindspore.parallel._auto_parallel_context import auto_parallel_context

    context = auto_parallel_context()
    before = context.get_enable_all_reduce_fusion()
    try:
        context.set_enable_all_reduce_fusion(False)
        fuse_all_reduces()
        assert context.get_enable_all_reduce_fusion()
    finally:
        context.set_enable_all_reduce_fusion(before)


def test_a_mindspore_without_that_switch_gets_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mindspore.parallel import _auto_parallel_context

    monkeypatch.setattr(_auto_parallel_context, "auto_parallel_context", object)
    logging.getLogger("focal").propagate = True
    fuse_all_reduces()
    assert "cannot fuse all-reduces" in caplog.text


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
