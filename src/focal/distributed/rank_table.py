"""Rank tables: JSON files with which Ascend platforms say which process uses which device of which server.

Two forms are in use. One has a `server_list`, whose servers have a `server_id` and a list `device` of entries with
`device_id` and `rank_id`; some platforms add the server's address as `container_ip` or `host_ip`. ModelArts' older form
has a `group_list` of `instance_list`s, whose `devices` have no `rank_id`: ranks follow the order of the file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from focal.errors import UserError

MODELARTS_RANK_TABLE = "jobstart_hccl.json"  # ModelArts names the folder; the table in it has this name
# In this order: a container's own address can be listened on, its host's often cannot, and server_id may be any name.
# `device_ip` is never tried: it belongs to the network card of the NPU, which the host cannot use.
_ADDRESS_KEYS = ("container_ip", "pod_ip", "host_ip", "server_id")


@dataclass(frozen=True)
class Server:
    """One server of a job.

    Attributes:
        addresses: IP addresses or names under which the other servers may reach it, the most certain first.
        devices: rank -> number of its device on this server.
    """

    addresses: tuple[str, ...]
    devices: dict[int, int]


@dataclass(frozen=True)
class RankTable:
    """The servers of a job, in the order of the file."""

    path: Path
    servers: tuple[Server, ...]

    @property
    def world_size(self) -> int:
        """Number of devices, which is the number of ranks."""
        return sum(len(server.devices) for server in self.servers)

    def device_of(self, rank: int) -> int:
        """Number of the device of this rank on its server. KeyError: the table has no such rank."""
        return self.server_of(rank).devices[rank]

    def server_of(self, rank: int) -> Server:
        """The server of this rank. KeyError: the table has no such rank."""
        for server in self.servers:
            if rank in server.devices:
                return server
        raise KeyError(rank)


def read_rank_table(location: str, variable: str = "RANK_TABLE_FILE") -> RankTable:
    """Read a rank table of either form.

    Args:
        location: the file, or ModelArts' folder around it.
        variable: the environment variable that named it, for the errors.

    Raises:
        UserError: there is no such file, it is not a rank table, the platform has not completed it, it lists no
            devices, or its ranks are not 0 to n - 1.
    """
    path = _find(location, variable)
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        status = table.get("status", "completed")
        servers = _servers(table) if status == "completed" else []
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"{variable}: {path} is not a rank table ({type(error).__name__}: {error})") from None
    if status != "completed":
        raise UserError(f"{variable}: {path} has status {status!r}, not 'completed': the platform is not ready yet")
    ranks = sorted(rank for server in servers for rank in server.devices)
    if not ranks:
        raise UserError(f"{variable}: {path} lists no devices")
    if ranks != list(range(len(ranks))):
        raise UserError(f"{variable}: {path} lists the ranks {ranks}; they must be 0 to {len(ranks) - 1}, each once")
    return RankTable(path, tuple(servers))


def _find(location: str, variable: str) -> Path:
    path = Path(location)
    if path.is_dir():
        path = path / MODELARTS_RANK_TABLE
    if not path.is_file():
        raise UserError(f"{variable}: {path} does not exist; unset it, or name the rank table of this job")
    return path


def _servers(table: dict[str, Any]) -> list[Server]:
    if "server_list" in table:
        entries = [(server, server["device"]) for server in table["server_list"]]
    else:
        instances = [instance for group in table["group_list"] for instance in group["instance_list"]]
        entries = [(instance, instance["devices"]) for instance in instances]
    servers = []
    position = 0  # in the whole table: the rank of a device without rank_id
    for entry, listed in entries:
        devices = {}
        for device in listed:
            devices[int(device.get("rank_id", position))] = int(device["device_id"])
            position += 1
        addresses = tuple(str(entry[key]) for key in _ADDRESS_KEYS if entry.get(key))
        servers.append(Server(addresses, devices))
    return servers
