"""What the environment says about this process: rank and number of workers, as a launcher or a platform set them.

Pure functions of a mapping (`os.environ` in the product), so that every platform can be tested on any machine. Nothing
here imports MindSpore.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from focal.errors import UserError

MODELARTS_RANK_TABLE = "jobstart_hccl.json"  # ModelArts names the folder; the table in it has this name


@dataclass(frozen=True)
class Launch:
    """One process of a job that something has launched already.

    Attributes:
        launcher: who started it: `dynamic_cluster` (msrun or ours), `rank_table`, `preset` (a platform's preset engine)
            or `mpi`.
        world_size: workers of the whole job.
        rank: number of this worker; None where MindSpore assigns it while the cluster forms.
        device_id: device of this process; None where nothing says.
        is_scheduler: this process only brings the workers of a dynamic cluster together; it trains nothing.
        rank_table: the rank table file, where there is one.
    """

    launcher: str
    world_size: int
    rank: Optional[int]
    device_id: Optional[int]
    is_scheduler: bool = False
    rank_table: Optional[Path] = None


def detect_launch(environ: Mapping[str, str]) -> Optional[Launch]:
    """The launch this process belongs to, or None: nobody has started workers.

    Raises:
        UserError: variables that contradict each other, or an unusable rank table.
    """
    if environ.get("MS_ROLE"):
        return _dynamic_cluster(environ)
    if environ.get("RANK_TABLE_FILE"):
        return _rank_table(environ)
    if environ.get("OMPI_COMM_WORLD_SIZE"):
        size = _number(environ, "OMPI_COMM_WORLD_SIZE")
        local = _number(environ, "OMPI_COMM_WORLD_LOCAL_RANK")
        return Launch("mpi", size, _number(environ, "OMPI_COMM_WORLD_RANK"), local)
    size = _number(environ, "RANK_SIZE", default=1)
    if size > 1:  # a size of 1 is what preset engines set in a single process: workers may still be wanted
        rank = _number(environ, "RANK_ID")
        return _checked(Launch("preset", size, rank, _number(environ, "DEVICE_ID", default=rank)))
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
    device_id = _number(environ, "DEVICE_ID") if "DEVICE_ID" in environ else None
    return _checked(Launch("dynamic_cluster", size, rank, device_id))


def _rank_table(environ: Mapping[str, str]) -> Launch:
    path = find_rank_table(environ["RANK_TABLE_FILE"])
    table_size = rank_table_size(path)
    if "RANK_ID" not in environ:
        raise UserError(
            "RANK_TABLE_FILE is set but RANK_ID is not: start one process per device, each with its RANK_ID, or unset "
            "RANK_TABLE_FILE and give --device_num to have the workers started"
        )
    size = _number(environ, "RANK_SIZE", default=table_size)
    if size != table_size:
        raise UserError(f"RANK_SIZE: {size} contradicts RANK_TABLE_FILE, which lists {table_size} devices ({path})")
    rank = _number(environ, "RANK_ID")
    device_id = _number(environ, "DEVICE_ID") if "DEVICE_ID" in environ else None
    return _checked(Launch("rank_table", size, rank, device_id, rank_table=path))


def find_rank_table(location: str) -> Path:
    """The table itself, where `location` is the file or ModelArts' folder around it.

    Raises:
        UserError: neither exists.
    """
    path = Path(location)
    if path.is_dir():
        path = path / MODELARTS_RANK_TABLE
    if not path.is_file():
        raise UserError(f"RANK_TABLE_FILE: {path} does not exist; unset it, or name the rank table of this job")
    return path


def rank_table_size(path: Path) -> int:
    """Devices listed in a rank table, of the form with `server_list` or ModelArts' older one with `group_list`.

    Raises:
        UserError: not JSON, not finished by the platform, or without devices.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        status = table.get("status", "completed")
        size = sum(len(devices) for devices in _device_lists(table))
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"RANK_TABLE_FILE: {path} is not a rank table ({type(error).__name__}: {error})") from None
    if status != "completed":
        raise UserError(
            f"RANK_TABLE_FILE: {path} has status {status!r}, not 'completed': the platform is not ready yet"
        )
    if not size:
        raise UserError(f"RANK_TABLE_FILE: {path} lists no devices")
    return size


def _device_lists(table: dict[str, Any]) -> list[list[Any]]:
    if "server_list" in table:
        return [server["device"] for server in table["server_list"]]
    instances = [instance for group in table["group_list"] for instance in group["instance_list"]]
    return [instance["devices"] for instance in instances]


def _number(environ: Mapping[str, str], name: str, default: Optional[int] = None) -> int:
    text = environ.get(name)
    if text is None or text == "":
        if default is None:
            raise UserError(f"{name} is not set, although other variables of the same launcher are; start the job anew")
        return default
    if not text.isdigit():
        raise UserError(f"{name}: {text!r} is not a number")
    return int(text)


def _checked(launch: Launch) -> Launch:
    if launch.rank is not None and launch.rank >= launch.world_size:
        raise UserError(
            f"rank {launch.rank} of the environment must be less than its number of workers {launch.world_size}"
        )
    return launch


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
