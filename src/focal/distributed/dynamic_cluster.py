"""MindSpore's dynamic cluster: the variables its processes need, its scheduler, and other launches turned into one.

One scheduler process brings the workers together; environment variables tell each process where it is and which rank
the process has. Every launch but mpirun's ends up here, because MindSpore 2.8 has no other way that works in full: with
a rank table it compiles whole graphs only (GE), where a collective outside a graph has no communicator.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Callable, Optional

from focal.config.schema import RunConfig
from focal.distributed import processes
from focal.distributed.environment import RANK_TABLE_VARIABLES, Launch
from focal.distributed.rank_table import RankTable
from focal.errors import UserError

logger = logging.getLogger("focal")

REPOSITORY_SOURCES = Path(__file__).resolve().parents[2]
DEFAULT_PORT = 8118  # MindSpore's own; every process must know it without asking another
LOOPBACK = "127.0.0.1"
SCHEDULER_COMMAND = (
    sys.executable,
    "-c",
    "from focal.distributed.dynamic_cluster import run_scheduler; run_scheduler()",
)
LAST_WORKER_GRACE = 600.0  # seconds that the other workers have to end after rank 0, which ended well
FAILED_RANK_0_GRACE = 5.0  # and otherwise: ranks that fail together end with exit codes of their own
PORT_PATIENCE = 10.0  # seconds: the scheduler of a job that has just failed still listens there for a moment
_JOB_HAS_ENDED = signal.SIGUSR1
_PORTS = range(20000, 32000)  # below the ports that systems hand out for outgoing connections


def cluster_environment(world_size: int, host: str, port: int) -> dict[str, str]:
    """The variables that the scheduler and all workers of a dynamic cluster share, with `os.environ` underneath.

    Args:
        world_size: workers of the whole job.
        host: IP address at which the scheduler listens.
        port: its port.
    """
    return {
        "MS_TOPO_TIMEOUT": "600",  # seconds for all workers to come together; MindSpore's own: 1800
        "GLOG_v": "3",  # MindSpore's warnings about connections fill a terminal; 2 shows them
        **os.environ,
        "MS_WORKER_NUM": str(world_size),
        "MS_SCHED_HOST": host,
        "MS_SCHED_PORT": str(port),
        "RANK_SIZE": str(world_size),
    }


def worker_environment(common: Mapping[str, str], rank: int, device_id: int) -> dict[str, str]:
    """`common`, completed with the variables that tell a worker of a dynamic cluster its rank and its device."""
    return {
        **common,
        "MS_ROLE": "MS_WORKER",
        "MS_NODE_ID": str(rank),
        "RANK_ID": str(rank),
        "DEVICE_ID": str(device_id),
    }


def scheduler_environment(common: Mapping[str, str]) -> dict[str, str]:
    """`common`, completed for the scheduler's process."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY_SOURCES), common.get("PYTHONPATH")]))
    return {**common, "MS_ROLE": "MS_SCHED", "RANK_ID": "0", "PYTHONPATH": path}


def run_scheduler() -> None:
    """Be the scheduler of the dynamic cluster until its workers have ended. Trains nothing, uses no device."""
    import mindspore as ms
    from mindspore.communication import init

    ms.set_device("CPU")
    init()


def turn_into_dynamic_cluster(launch: Launch, run: RunConfig) -> Optional[Scheduler]:
    """Make this process, launched with a rank table or with RANK_ID and RANK_SIZE alone, a worker of a dynamic cluster.

    Changes `os.environ` as our own launcher would have set it, and removes the rank table from it: MindSpore takes
    ranks and devices from a table even inside a dynamic cluster. Has to be called before MindSpore is imported. Other
    launches, and jobs of one process, are left as they are, but for the rank table.

    Returns:
        The scheduler, in rank 0's process, which starts it; None elsewhere.

    Raises:
        UserError: no address of rank 0's server is known, or the scheduler cannot listen there.
    """
    if launch.launcher not in ("rank_table", "preset"):
        return None
    for variable in RANK_TABLE_VARIABLES:
        os.environ.pop(variable, None)
    # In a simulation (tools/ascend_dry_run) the other ranks do not exist.
    if launch.world_size == 1 or os.environ.get("MS_SIMULATION_LEVEL"):
        return None
    host, port = scheduler_address(launch, run, os.environ)
    common = cluster_environment(launch.world_size, host, port)
    assert launch.rank is not None and launch.device_id is not None  # both launchers say them
    scheduler = None
    if launch.rank == 0:
        check_port(host, port, patience=PORT_PATIENCE)
        scheduler = Scheduler(scheduler_environment(common))
    os.environ.update(worker_environment(common, launch.rank, launch.device_id))
    return scheduler


def scheduler_address(launch: Launch, run: RunConfig, environ: Mapping[str, str]) -> tuple[str, int]:
    """IP address and port of the scheduler, which every process of the job must find out by itself.

    The first of these that is given: `master_addr` and `master_port`, unless they have their defaults; MS_SCHED_HOST
    and MS_SCHED_PORT; rank 0's server in the rank table; the first of VC_WORKER_HOSTS, the names of ModelArts' servers.
    Otherwise the job has this server alone.

    Raises:
        UserError: an address cannot be resolved, or the port is not a number from 1 to 65535.
    """
    port = str(run.master_port or environ.get("MS_SCHED_PORT") or DEFAULT_PORT)
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"MS_SCHED_PORT: {port!r} is not a port; unset it, or give --master_port")
    default_host = RunConfig().master_addr
    if run.master_addr != default_host:
        return resolve("master_addr", run.master_addr), int(port)
    if environ.get("MS_SCHED_HOST"):
        return resolve("MS_SCHED_HOST", environ["MS_SCHED_HOST"]), int(port)
    if launch.rank_table is not None:
        return _address_in_table(launch.rank_table), int(port)
    hosts = [name.strip() for name in environ.get("VC_WORKER_HOSTS", "").split(",") if name.strip()]
    if len(hosts) > 1:
        return resolve("VC_WORKER_HOSTS", hosts[0]), int(port)
    return LOOPBACK, int(port)


def _address_in_table(table: RankTable) -> str:
    if len(table.servers) == 1:
        return LOOPBACK  # whatever the table calls this server, it reaches itself there
    addresses = table.server_of(0).addresses
    for address in addresses:
        with contextlib.suppress(OSError):
            return socket.gethostbyname(address)
    names = ", ".join(addresses) or "nothing"
    raise UserError(
        f"rank table: {table.path} gives {names} for the server of rank 0, and no address is known for it; "
        "give --master_addr, the address of that server (the same in all processes)"
    )


class Scheduler:
    """The scheduler of a job without our launcher: a child process of rank 0's, see `supervise_scheduler`."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        code = f"from focal.distributed.dynamic_cluster import supervise_scheduler; supervise_scheduler({os.getpid()})"
        self._ending = False
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in a terminal is for the workers
        )

    def watch(self, on_failure: Callable[[int], None]) -> None:
        """Call `on_failure` with the exit code, from a thread, if the scheduler fails before the job's end."""

        def wait() -> None:
            code = self._process.wait()
            if code and not self._ending:
                on_failure(code)

        threading.Thread(target=wait, name="scheduler-watch", daemon=True).start()

    def job_has_ended(self) -> None:
        """The job has ended well, so that the other workers may still need the scheduler after this process."""
        self._ending = True
        self._process.send_signal(_JOB_HAS_ENDED)


def supervise_scheduler(rank_0: int) -> None:
    """Run the scheduler as a child process, and see to it that it does not outlive the process `rank_0` for long.

    MindSpore's workers sign off from the scheduler when their process ends, and one that no longer finds it is killed.
    So after a job that has ended well the scheduler stays for those that still send their results; after a failure it
    ends soon, which is how the other workers learn of it.
    """
    ended_well = threading.Event()
    signal.signal(_JOB_HAS_ENDED, lambda *_: ended_well.set())
    # A platform that stops a job may signal every process; the workers need the scheduler while they save. The child
    # inherits this.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    scheduler = subprocess.Popen(SCHEDULER_COMMAND, preexec_fn=processes.die_with_parent)
    deadline = float("inf")
    while scheduler.poll() is None and time.monotonic() < deadline:
        if deadline == float("inf") and os.getppid() != rank_0:
            deadline = time.monotonic() + (LAST_WORKER_GRACE if ended_well.is_set() else FAILED_RANK_0_GRACE)
        time.sleep(0.1)
    scheduler.kill()
    sys.exit(min(abs(scheduler.wait()), 255))


def free_port() -> int:
    """A TCP port nobody listens on."""
    for port in random.SystemRandom().sample(_PORTS, 50):
        if _can_listen("", port):
            return port
    raise UserError("master_port: found no free port between 20000 and 32000; give --master_port")


def check_port(host: str, port: int, patience: float = 0.0) -> None:
    """Raise `UserError` unless this server has the address `host` and, within `patience` seconds, a free `port`."""
    deadline = time.monotonic() + patience
    while True:
        if _can_listen(host, port):
            return
        if time.monotonic() >= deadline:
            break
        time.sleep(0.2)
    if _can_listen("", port):
        raise UserError(
            f"master_addr: {host} is not an address of this server, which has rank 0; give --master_addr one that is"
        )
    raise UserError(
        f"master_port: {port} is taken on this server; choose another --master_port (the same on all servers)"
    )


def _can_listen(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def resolve(setting: str, host: str) -> str:
    """IPv4 address of a host name: MindSpore wants numbers. `setting` is what named it, for the error.

    Raises:
        UserError: the name cannot be resolved.
    """
    try:
        return socket.gethostbyname(host)
    except OSError as error:
        raise UserError(f"{setting}: cannot resolve {host!r} ({error}); give the address of server 0") from None
