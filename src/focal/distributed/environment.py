"""How this process was launched: its rank and the number of workers, from the variables of launchers and platforms.

Pure functions of a mapping (`os.environ` in the product), so that every platform can be tested on any machine. Nothing
here imports MindSpore.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Optional

from focal.distributed.rank_table import RankTable, read_rank_table
from focal.errors import UserError

# Two names for the same file; the first takes precedence.
RANK_TABLE_VARIABLES = ("RANK_TABLE_FILE", "MINDSPORE_HCCL_CONFIG_PATH")


@dataclass(frozen=True)
class Launch:
    """How one process of a job was launched, as its environment tells.

    Attributes:
        launcher: what started it: `dynamic_cluster` (msrun or our launcher), `rank_table`, `preset` (a platform's
            preset engine, which sets RANK_ID and RANK_SIZE) or `mpi`.
        world_size: workers of the whole job.
        rank: number of this worker; None where MindSpore assigns it while the cluster forms.
        device_id: device of this process; None where nothing says.
        is_scheduler: this process only brings the workers of a dynamic cluster together; it trains nothing.
        rank_table: the rank table, for the launcher `rank_table`.
    """

    launcher: str
    world_size: int
    rank: Optional[int]
    device_id: Optional[int]
    is_scheduler: bool = False
    rank_table: Optional[RankTable] = None


def detect_launch(environ: Mapping[str, str]) -> Optional[Launch]:
    """The launch this process belongs to, or None if no launcher started it.

    Raises:
        UserError: variables that contradict each other, or an unusable rank table.
    """
    if environ.get("MS_ROLE"):
        return _dynamic_cluster(environ)
    for variable in RANK_TABLE_VARIABLES:
        if environ.get(variable):
            return _rank_table(environ, variable)
    if environ.get("OMPI_COMM_WORLD_SIZE"):
        size = _number(environ, "OMPI_COMM_WORLD_SIZE")
        local = _number(environ, "OMPI_COMM_WORLD_LOCAL_RANK")
        return Launch("mpi", size, _number(environ, "OMPI_COMM_WORLD_RANK"), local)
    size = _number(environ, "RANK_SIZE", default=1)
    if size > 1:  # a size of 1 is what preset engines set in a single process: workers may still be wanted
        rank = _number(environ, "RANK_ID")
        _check_rank(rank, size)
        return Launch("preset", size, rank, _number(environ, "DEVICE_ID", default=rank))
    return None


def _dynamic_cluster(environ: Mapping[str, str]) -> Launch:
    role = environ["MS_ROLE"]
    if role not in ("MS_WORKER", "MS_SCHED"):
        raise UserError(f"MS_ROLE: {role!r} is neither MS_WORKER nor MS_SCHED; unset it, or start the job with msrun")
    size = _number(environ, "MS_WORKER_NUM")
    if role == "MS_SCHED":
        return Launch("dynamic_cluster", size, None, None, is_scheduler=True)
    node_id = environ.get("MS_NODE_ID", "")
    rank = int(node_id) if node_id.isdigit() else None
    if rank is not None:
        _check_rank(rank, size)
    device_id = _number(environ, "DEVICE_ID") if "DEVICE_ID" in environ else None
    return Launch("dynamic_cluster", size, rank, device_id)


def _rank_table(environ: Mapping[str, str], variable: str) -> Launch:
    table = read_rank_table(environ[variable], variable)
    if not environ.get("RANK_ID"):
        raise UserError(
            f"{variable} is set but RANK_ID is not: start one process per device, each with its RANK_ID, or unset "
            f"{variable} and give --device_num to have the workers started"
        )
    size = _number(environ, "RANK_SIZE", default=table.world_size)
    if size != table.world_size:
        raise UserError(
            f"RANK_SIZE: {size} contradicts {variable}, which lists {table.world_size} devices ({table.path})"
        )
    rank = _number(environ, "RANK_ID")
    _check_rank(rank, size)
    return Launch("rank_table", size, rank, _number(environ, "DEVICE_ID", table.device_of(rank)), rank_table=table)


def _number(environ: Mapping[str, str], name: str, default: Optional[int] = None) -> int:
    text = environ.get(name)
    if text is None or text == "":
        if default is None:
            raise UserError(
                f"{name} is not set, although other variables of the same launcher are; start the job again"
            )
        return default
    if not text.isdigit():
        raise UserError(f"{name}: {text!r} is not a number")
    return int(text)


def _check_rank(rank: int, world_size: int) -> None:
    if rank >= world_size:
        raise UserError(f"rank {rank} of the environment must be less than its number of workers {world_size}")


def check_device_num(device_num: int, launch: Launch) -> None:
    """Refuse a `device_num` that contradicts the launcher; 1, the default, contradicts nothing.

    Raises:
        UserError: with both numbers.
    """
    if device_num not in (1, launch.world_size):
        raise UserError(
            f"device_num: {device_num} contradicts the environment, where {launch.launcher} started "
            f"{launch.world_size} workers; give --device_num {launch.world_size} or leave it out"
        )
