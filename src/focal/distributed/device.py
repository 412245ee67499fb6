"""Device and rank of this process: MindSpore's context is set, and the process group formed and left, here."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import logging
import math
import os
import signal
import socket
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import numpy as np

from focal.config.device_target import resolve_target
from focal.config.schema import RunConfig
from focal.distributed.collectives import (
    COLLECTIVE_TIMEOUT,
    all_reduce_sum,
    barrier,
    give_up,
    group_size,
    set_group,
    waiting,
)
from focal.distributed.cores import share_cores
from focal.distributed.dynamic_cluster import Scheduler, turn_into_dynamic_cluster
from focal.distributed.environment import Launch, check_device_num, detect_launch
from focal.distributed.memory import use_one_memory_pool
from focal.distributed.progress_watch import FIRST_STEP_TIMEOUT
from focal.distributed.versions import check_numpy
from focal.errors import UserError

logger = logging.getLogger("focal")

FAILED_EXIT_TIMEOUT = 15  # seconds that a process of several may take to end after an error
CALL_DEPTH = 10_000


@dataclass(frozen=True)
class Device:
    """The place of this process in its job, and what it computes on.

    Attributes:
        rank: number of this process, 0 to world_size - 1.
        world_size: number of processes of the job.
        local_rank: number of this process among those on the same machine.
        local_size: number of processes on this machine.
        target: Ascend, CPU or GPU.
        jit_level: what MindSpore was told, see `resolve_jit_level`; empty: its default.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_size: int = 1
    target: str = "CPU"
    jit_level: str = ""

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which prints and writes the results."""
        return self.rank == 0


_scheduler: Optional[Scheduler] = None  # started by this process, if it is rank 0 of a job without our launcher


def setup_device(run: RunConfig) -> Device:
    """Set MindSpore's context and, in a job of several workers, form the process group.

    Must be called once, before any tensor or network exists. A process that was launched with a rank table, or with
    RANK_ID and RANK_SIZE alone, must call it before it imports MindSpore.

    Raises:
        UserError: the target is not available, `device_num` contradicts the launcher, or the cluster cannot form.
    """
    check_numpy(np.__version__)
    run = dataclasses.replace(run, device_target=resolve_target(run.device_target))
    launch = detect_launch(os.environ)
    scheduler = None
    if launch is not None:
        check_device_num(run.device_num, launch)
        scheduler = turn_into_dynamic_cluster(launch, run)
    elif run.device_num > 1:
        raise UserError(f"device_num: {run.device_num}, but no workers were started; see docs/distributed.md")
    if run.device_target == "Ascend":
        for name, seconds in communication_timeouts(run.step_timeout).items():
            os.environ.setdefault(name, seconds)
    if run.device_target == "CPU" and launch is not None:
        share_cores(launch.world_size // run.node_num)
    import mindspore as ms  # imported late: the import itself sets HCCL_CONNECT_TIMEOUT if it is unset

    ms.set_context(mode=ms.PYNATIVE_MODE if run.graph_mode else ms.GRAPH_MODE)
    # A loop over the gradients of a large network is unrolled into calls nested once per gradient: Small has over 300,
    # and MindSpore's own limit of 1000 calls refuses its training step.
    ms.set_recursion_limit(CALL_DEPTH)
    _set_target(run, launch)
    jit_level = _set_compilation(run)
    # The scheduler of a dynamic cluster waits for its workers even if there is only one.
    if launch is None or (launch.world_size == 1 and launch.launcher != "dynamic_cluster"):
        return Device(target=run.device_target, jit_level=jit_level)
    device = _join_group(launch, run.device_target, scheduler)
    return dataclasses.replace(device, jit_level=jit_level)


def communication_timeouts(step_timeout: float) -> dict[str, str]:
    """Seconds that HCCL waits for another rank: longer than this project's own limits, whose messages say more.

    CANN's defaults, 120 seconds to connect and 1836 in a collective, are too short: ranks may differ by more while each
    compiles its graph.

    Args:
        step_timeout: the setting of that name, in seconds; only values above `FIRST_STEP_TIMEOUT` change the result.

    Returns:
        HCCL_CONNECT_TIMEOUT (CANN accepts 120 to 7200) and HCCL_EXEC_TIMEOUT (on Atlas training series at most 17340,
        and rounded down to a multiple of 68).
    """
    longest = max(FIRST_STEP_TIMEOUT, step_timeout)
    connect = min(int(longest) + 60, 7200)
    execute = min(math.ceil((longest + 60) / 68) * 68, 17340)
    return {"HCCL_CONNECT_TIMEOUT": str(connect), "HCCL_EXEC_TIMEOUT": str(execute)}


def _set_target(run: RunConfig, launch: Optional[Launch]) -> None:
    import mindspore as ms

    device_id = run.device_id if launch is None or launch.device_id is None else launch.device_id
    try:
        if run.device_target == "CPU":
            ms.set_device("CPU")
            use_one_memory_pool()
        else:
            ms.set_device(run.device_target, device_id)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"device_target: {run.device_target} (device {device_id}) cannot be used here: {reason}; "
            "use --device_target CPU, or see docs/distributed.md"
        ) from None
    if run.device_target == "Ascend":
        _set_precision()


def _set_precision() -> None:
    """Have each operator compute in the type that the network asks for, as far as the chip can."""
    from mindspore.device_context.ascend import op_precision

    from focal.distributed.chip import ascend_chip, operator_precision

    precision = operator_precision(ascend_chip())
    op_precision.precision_mode(precision.mode)
    if precision.has_hf32:
        op_precision.conv_allow_hf32(False)
        op_precision.matmul_allow_hf32(False)


def _set_compilation(run: RunConfig) -> str:
    """Set how graphs are compiled and launched; returns the jit_level that was set, or ""."""
    import mindspore as ms

    from focal.distributed.chip import ascend_chip, resolve_jit_level
    from focal.distributed.cpu_graph_kernels import use_graph_kernels

    level = resolve_jit_level(run.jit_level, ascend_chip() if run.device_target == "Ascend" else "")
    if level == "O1" and run.device_target == "CPU":
        if run.compile_cache is not None:
            raise UserError(
                "compile_cache: cannot keep the graph kernels of jit_level O1 on a CPU; omit one of the two"
            )
        use_graph_kernels()
    if level:
        # For the whole process, and so for the Cell that sink mode calls as well: `ms.data_sink` takes a batch from the
        # queue in PyNative mode and hands it to the Cell, which is compiled by these settings like any other.
        ms.set_context(jit_config={"jit_level": level})
    if run.kernel_launch_group:
        # Four groups of kernels per thread, as in MindSpore's own default of two threads and eight groups.
        ms.runtime.set_kernel_launch_group(run.kernel_launch_group, 4 * run.kernel_launch_group)
    return level


def _join_group(launch: Launch, target: str, scheduler: Optional[Scheduler]) -> Device:
    global _scheduler
    import mindspore as ms
    from mindspore.communication import get_group_size, get_rank, init

    if scheduler is not None:
        scheduler.watch(_scheduler_failed)
    # MindSpore itself gives up after MS_TOPO_TIMEOUT seconds, and says more about it.
    join_timeout = max(COLLECTIVE_TIMEOUT, float(os.environ.get("MS_TOPO_TIMEOUT") or 0) + 60.0)
    with waiting("the other workers to join the process group", join_timeout):
        try:
            init()
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"cannot join the other workers (launched by {launch.launcher}, target {target}): {reason}; "
                "see docs/distributed.md"
            ) from None
    rank, world_size, _scheduler = int(get_rank()), int(get_group_size()), scheduler
    set_group(rank, world_size)
    atexit.register(_limit_exit)
    ms.set_auto_parallel_context(parallel_mode=ms.ParallelMode.DATA_PARALLEL, gradients_mean=True)
    local_rank, local_size = _place_on_machine(rank, world_size)
    _take_back_interrupt()
    return Device(rank, world_size, local_rank, local_size, target)


def _scheduler_failed(code: int) -> None:
    give_up(f"the scheduler of this job, started by rank 0, ended with exit code {code}; see the other ranks' logs")


def _limit_exit() -> None:
    """Have the kernel end this process, if it failed, unless it ends by itself within `FAILED_EXIT_TIMEOUT` seconds.

    When a process ends, MindSpore signs off from the scheduler and waits for an answer, which may never come.
    """
    if group_size() > 1:  # `shutdown` was not reached
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(FAILED_EXIT_TIMEOUT)


def _place_on_machine(rank: int, world_size: int) -> tuple[int, int]:
    """Local rank and local size, from what the ranks tell each other: no launcher but ours sets them both."""
    identity = socket.gethostname()
    with contextlib.suppress(OSError):  # the same name on two machines: the boot id tells them apart
        identity += Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    digest = zlib.crc32(identity.encode())
    table = np.zeros((world_size, 2), np.float32)
    table[rank] = digest >> 16, digest & 0xFFFF  # halves, exact in float32
    table = all_reduce_sum(table)
    same = [other for other in range(world_size) if (table[other] == table[rank]).all()]
    return same.index(rank), len(same)


def _take_back_interrupt() -> None:
    """Have Ctrl-C raise KeyboardInterrupt again: on CPU the process group's event loops take SIGINT for themselves."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.getsignal(signal.SIGINT) or signal.default_int_handler)


def shutdown() -> None:
    """Leave the process group together, so that no rank is taken for dead while another still works."""
    global _scheduler
    if group_size() == 1:
        return
    barrier("the end of the job")
    from mindspore.communication import release

    release()
    if _scheduler is not None:
        _scheduler.job_has_ended()
    set_group(0, 1)
    _scheduler = None
