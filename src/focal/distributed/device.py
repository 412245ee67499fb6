"""Device, rank and process group of this process, and the few collective calls made outside compiled graphs.

Everything sent between ranks is a float32 sum: the one collective that works on every device MindSpore supports. Each
call that waits for other ranks ends the process with a message when it has waited too long.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import os
import signal
import socket
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import numpy as np

from focal.config.schema import RunConfig
from focal.distributed.dynamic_cluster import Scheduler, turn_into_dynamic_cluster
from focal.distributed.environment import Launch, check_device_num, detect_launch
from focal.distributed.memory import use_one_memory_pool
from focal.distributed.versions import check_numpy
from focal.errors import UserError

if TYPE_CHECKING:  # importing this module does not import the framework
    from mindspore import Parameter

logger = logging.getLogger("focal")

TIMEOUT_EXIT_CODE = 75  # EX_TEMPFAIL: the job can be started again
COLLECTIVE_TIMEOUT = 600.0  # seconds; ranks may differ by a compilation, not by more
FIRST_STEP_TIMEOUT = 3600.0  # seconds for the first batch, the compilation and the first step
FAILED_EXIT_TIMEOUT = 15  # seconds that a process of several may take to end after an error
CALL_DEPTH = 10_000
_BUCKET = 1 << 24  # float32 numbers per collective when broadcasting: 64 MiB


@dataclass(frozen=True)
class Device:
    """This process among those of the job.

    Attributes:
        rank: number of this process, 0 to world_size - 1.
        world_size: processes of the job.
        local_rank: number of this process among those of the same machine.
        local_size: processes on this machine.
        target: Ascend, CPU or GPU.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_size: int = 1
    target: str = "CPU"

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which prints, and writes the results."""
        return self.rank == 0


_world_size = 1  # of the process group; set once by setup_device
_rank = 0
_scheduler: Optional[Scheduler] = None  # started by this process, if it is rank 0 of a job without our launcher


def setup_device(run: RunConfig) -> Device:
    """Set MindSpore's context and, in a job of several workers, form the process group.

    Must be called once, before any tensor or network exists. A process that was launched with a rank table, or with
    RANK_ID and RANK_SIZE alone, must call it before it imports MindSpore.

    Raises:
        UserError: the target is not available, `device_num` contradicts the launcher, or the cluster cannot form.
    """
    check_numpy(np.__version__)
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
    import mindspore as ms  # not before: when imported, it sets HCCL_CONNECT_TIMEOUT where nobody else has

    ms.set_context(mode=ms.PYNATIVE_MODE if run.graph_mode else ms.GRAPH_MODE)
    # A loop over the gradients of a large network is unrolled into calls nested once per gradient: Small has over 300,
    # and MindSpore's own limit of 1000 calls refuses its training step.
    ms.set_recursion_limit(CALL_DEPTH)
    _set_target(run, launch)
    # The scheduler of a dynamic cluster waits for its worker even where there is only one.
    if launch is None or (launch.world_size == 1 and launch.launcher != "dynamic_cluster"):
        return Device(target=run.device_target)
    return _join_group(launch, run.device_target, scheduler)


def communication_timeouts(step_timeout: float) -> dict[str, str]:
    """Seconds that HCCL waits for another rank: longer than this project does, whose messages say more.

    CANN's own defaults, 120 seconds to connect and 1836 in a collective, are shorter than the ranks may differ while
    each compiles its graph.

    Args:
        step_timeout: the setting of that name; 0 (no watch) counts as the default limits.

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
    """Have each operator compute in the type the network asks for, as far as the chip can."""
    from mindspore.device_context.ascend import op_precision

    from focal.models.precision import ascend_chip, operator_precision

    precision = operator_precision(ascend_chip())
    op_precision.precision_mode(precision.mode)
    if precision.has_hf32:
        op_precision.conv_allow_hf32(False)
        op_precision.matmul_allow_hf32(False)


def _join_group(launch: Launch, target: str, scheduler: Optional[Scheduler]) -> Device:
    global _rank, _world_size, _scheduler
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
    _rank, _world_size, _scheduler = int(get_rank()), int(get_group_size()), scheduler
    atexit.register(_limit_exit)
    ms.set_auto_parallel_context(parallel_mode=ms.ParallelMode.DATA_PARALLEL, gradients_mean=True)
    if target == "Ascend":
        fuse_all_reduces()
    local_rank, local_size = _place_on_machine()
    _take_back_interrupt()
    return Device(_rank, _world_size, local_rank, local_size, target)


def fuse_all_reduces() -> None:
    """Have the Ascend backend merge all-reduces with the same `fusion` number into one message (see collectives.py).

    Kernel by kernel (jit_level O0 and O1) the numbers count only once this is switched on; compiled by GE (O2) they
    count in any case. The public setting `comm_fusion` is no substitute: its mode `size` also switches fusion on, but
    then splits the project's buckets again by sizes of its own.
    """
    try:
        from mindspore.parallel._auto_parallel_context import auto_parallel_context

        auto_parallel_context().set_enable_all_reduce_fusion(True)
    except (ImportError, AttributeError) as error:
        logger.warning("this MindSpore cannot fuse all-reduces (%s): each gradient is sent by itself, slowly", error)


def _scheduler_failed(code: int) -> None:
    _give_up(f"the scheduler of this job, started by rank 0, ended with exit code {code}; see the other ranks' logs")


def _limit_exit() -> None:
    """At the end of a process that fails: let the kernel end it if it has not ended after `FAILED_EXIT_TIMEOUT`.

    MindSpore signs off from the scheduler when the process ends, and waits for an answer that may never come.
    """
    if _world_size > 1:  # `shutdown` was not reached
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(FAILED_EXIT_TIMEOUT)


def _place_on_machine() -> tuple[int, int]:
    """Local rank and local size, from what the ranks tell each other: no launcher but ours sets them both."""
    identity = socket.gethostname()
    with contextlib.suppress(OSError):  # the same name on two machines: the boot id tells them apart
        identity += Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    digest = zlib.crc32(identity.encode())
    table = np.zeros((_world_size, 2), np.float32)
    table[_rank] = digest >> 16, digest & 0xFFFF  # halves, exact in float32
    table = all_reduce_sum(table)
    same = [rank for rank in range(_world_size) if (table[rank] == table[_rank]).all()]
    return same.index(_rank), len(same)


def _take_back_interrupt() -> None:
    """Have Ctrl-C raise KeyboardInterrupt again: on CPU the process group's event loops take SIGINT for themselves."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.getsignal(signal.SIGINT) or signal.default_int_handler)


@contextlib.contextmanager
def waiting(what: str, timeout: float) -> Iterator[None]:
    """Around a call that waits for other ranks: ends this process with a message after `timeout` seconds.

    The wait happens inside the framework, where Python can neither interrupt it nor raise, hence the hard exit; the
    launcher then ends the other workers.
    """

    message = f"rank {_rank} waited {timeout:.0f} s for {what} and gives up; see the other ranks' logs"
    timer = threading.Timer(timeout, _give_up, (message,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class ProgressWatch:
    """Ends this process with a message when training makes no progress: a rank waits for another inside a graph.

    There neither Python nor `waiting` can look in.

    Args:
        timeout: seconds between two beats; 0: no watch. Until the first beat it is at least `FIRST_STEP_TIMEOUT`: what
            comes before, reading the first batch and compiling, takes longer.
        rank: for the message.
    """

    def __init__(self, timeout: float, rank: int) -> None:
        self._timeout = timeout
        self._rank = rank
        self._limit = max(timeout, FIRST_STEP_TIMEOUT)
        self._last = time.monotonic()
        self._stop = threading.Event()

    def start(self) -> None:
        """Watch from now on."""
        self._last = time.monotonic()
        if self._timeout:
            threading.Thread(target=self._watch, name="progress-watch", daemon=True).start()

    def beat(self) -> None:
        """Progress was made."""
        self._last, self._limit = time.monotonic(), self._timeout

    def stop(self) -> None:
        """No more beats will come, and none are missed."""
        self._stop.set()

    def _watch(self) -> None:
        while not self._stop.wait(min(10.0, self._timeout / 10)):
            limit, silent = self._limit, time.monotonic() - self._last
            if silent > limit:
                name = "step_timeout" if limit == self._timeout else "before the first step"
                _give_up(
                    f"rank {self._rank}: no step finished for {silent:.0f} s ({name} {limit:.0f}): this "
                    "rank or another is stuck; see the logs of all ranks"
                )


def _give_up(message: str) -> None:
    logger.error("%s", message)
    logging.shutdown()
    os._exit(TIMEOUT_EXIT_CODE)


def all_reduce_sum(values: np.ndarray, timeout: float = COLLECTIVE_TIMEOUT) -> np.ndarray:
    """Sum of `values` over all ranks, element by element; every rank must call it with the same shape.

    Args:
        values: float32, any shape. Integers travel as float32, exact up to 2**24.
        timeout: seconds to wait for the other ranks.

    Returns:
        float32 array of the same shape; with one process, the values themselves.
    """
    values = np.asarray(values, np.float32)
    if _world_size == 1:
        return values.copy()
    from mindspore import Tensor, ops

    with waiting("an all-reduce", timeout):
        # As a vector of at least one entry: CPU has no all-reduce of a scalar.
        summed = ops.AllReduce()(Tensor(np.ascontiguousarray(values).reshape(-1))).asnumpy()
    return summed.reshape(values.shape)


def barrier(name: str, timeout: float = COLLECTIVE_TIMEOUT) -> None:
    """Return once every rank is here. `name` and `timeout` (seconds) appear in the message if one never comes."""
    if _world_size == 1:
        return
    with waiting(f"the other ranks at {name!r}", timeout):
        all_reduce_sum(np.ones(1, np.float32), timeout + 60)


def broadcast_parameters(parameters: Iterable[Parameter]) -> None:
    """Give every rank rank 0's values of `parameters` (mindspore Parameters in the same order everywhere), in place.

    Values travel as 16-bit words, each a float32 in a sum with the other ranks' zeros: exact to the bit for any type.
    """
    parameters = list(parameters)
    if _world_size == 1 or not parameters:
        return
    from mindspore import Tensor

    arrays = [parameter.asnumpy() for parameter in parameters]
    raw = b"".join(array.tobytes() for array in arrays)
    words = np.frombuffer(raw + b"\0" * (len(raw) % 2), np.uint16)
    received = np.empty_like(words)
    for start in range(0, len(words), _BUCKET):
        mine = words[start : start + _BUCKET]
        received[start : start + _BUCKET] = all_reduce_sum(mine if _rank == 0 else np.zeros_like(mine))
    data, offset = received.tobytes(), 0
    for parameter, array in zip(parameters, arrays):
        value = np.frombuffer(data, array.dtype, array.size, offset).reshape(array.shape)
        parameter.set_data(Tensor(value.copy(), parameter.dtype))
        offset += array.nbytes


def shutdown() -> None:
    """Leave the process group together, so that no rank is taken for dead while another still works."""
    global _rank, _world_size, _scheduler
    if _world_size == 1:
        return
    barrier("the end of the job")
    from mindspore.communication import release

    release()
    if _scheduler is not None:
        _scheduler.job_has_ended()
    _rank, _world_size, _scheduler = 0, 1, None
