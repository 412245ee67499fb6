"""Launches turned into a dynamic cluster: the address that every process finds by itself, and the variables it sets."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any, Optional

import pytest

from focal.config import load_config
from focal.config.schema import RunConfig
from focal.distributed import dynamic_cluster
from focal.distributed.dynamic_cluster import check_port, free_port, scheduler_address, turn_into_dynamic_cluster
from focal.distributed.environment import Launch, detect_launch
from focal.errors import UserError


def settings(**keys: object) -> RunConfig:
    return load_config({"device_target": "CPU", **keys}).run


def write_table(folder: Path, *servers: dict[str, str]) -> Path:
    """A rank table of one device per server."""
    entries: list[dict[str, Any]] = []
    for rank, server in enumerate(servers):
        entries.append({**server, "device": [{"device_id": "4", "device_ip": "1.1.1.1", "rank_id": str(rank)}]})
    path = folder / "table.json"
    path.write_text(json.dumps({"status": "completed", "server_list": entries}))
    return path


def launched(rank: int, table: Optional[Path] = None, size: int = 2) -> Launch:
    environ = {"RANK_ID": str(rank), "RANK_SIZE": str(size), "DEVICE_ID": str(rank)}
    return detect_launch(environ if table is None else {**environ, "RANK_TABLE_FILE": str(table)})


def test_the_address_is_that_of_rank_0s_server(tmp_path: Path) -> None:
    table = write_table(tmp_path, {"server_id": "10.0.0.1"}, {"server_id": "10.0.0.2"})
    assert scheduler_address(launched(1, table), settings(), {}) == ("10.0.0.1", 8118)


def test_an_address_that_cannot_be_resolved_gives_way_to_the_next(tmp_path: Path) -> None:
    first = {"container_ip": "no-such-host.invalid", "host_ip": "10.0.0.1", "server_id": "opaque"}
    table = write_table(tmp_path, first, {"server_id": "10.0.0.2"})
    assert scheduler_address(launched(1, table), settings(), {})[0] == "10.0.0.1"


def test_a_table_without_an_address_is_one_clear_error(tmp_path: Path) -> None:
    table = write_table(tmp_path, {"server_id": "no-such-host.invalid"}, {"server_id": "10.0.0.2"})
    with pytest.raises(UserError, match=r"rank table: .* gives no-such-host\.invalid .* give --master_addr"):
        scheduler_address(launched(1, table), settings(), {})


def test_one_server_reaches_itself_whatever_the_table_calls_it(tmp_path: Path) -> None:
    table = write_table(tmp_path, {"server_id": "no-such-host.invalid"})
    assert scheduler_address(launched(0, table, size=1), settings(), {})[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("keys", "environ", "address"),
    [
        ({}, {}, ("127.0.0.1", 8118)),
        ({}, {"VC_WORKER_HOSTS": "localhost"}, ("127.0.0.1", 8118)),
        ({}, {"VC_WORKER_HOSTS": "10.0.0.3, 10.0.0.4"}, ("10.0.0.3", 8118)),
        ({}, {"VC_WORKER_HOSTS": "10.0.0.3,10.0.0.4", "MS_SCHED_HOST": "10.0.0.5"}, ("10.0.0.5", 8118)),
        ({"master_addr": "10.0.0.6"}, {"MS_SCHED_HOST": "10.0.0.5"}, ("10.0.0.6", 8118)),
        ({}, {"MS_SCHED_PORT": "9000"}, ("127.0.0.1", 9000)),
        ({"master_port": 9001}, {"MS_SCHED_PORT": "9000"}, ("127.0.0.1", 9001)),
    ],
)
def test_without_a_table_the_address_comes_from_settings_then_from_the_platform(
    keys: dict[str, object], environ: dict[str, str], address: tuple[str, int]
) -> None:
    assert scheduler_address(launched(1), settings(**keys), environ) == address


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"VC_WORKER_HOSTS": "no-such-host.invalid,b"}, r"VC_WORKER_HOSTS: cannot resolve 'no-such-host\.invalid'"),
        ({"MS_SCHED_HOST": "no-such-host.invalid"}, "MS_SCHED_HOST: cannot resolve"),
        ({"MS_SCHED_PORT": "http"}, "MS_SCHED_PORT: 'http' is not a port"),
    ],
)
def test_an_unusable_address_names_its_variable(environ: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        scheduler_address(launched(1), settings(), environ)


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """`os.environ`, for the test alone."""
    private: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", private)
    return private


def variables(environ: dict[str, str]) -> dict[str, str]:
    """All but the one that pytest adds."""
    return {name: value for name, value in environ.items() if name != "PYTEST_CURRENT_TEST"}


def test_a_worker_gets_the_variables_of_a_dynamic_cluster(tmp_path: Path, environ: dict[str, str]) -> None:
    table = write_table(tmp_path, {"server_id": "127.0.0.1"}, {"server_id": "127.0.0.2"})
    environ.update(RANK_TABLE_FILE=str(table), MINDSPORE_HCCL_CONFIG_PATH=str(table), RANK_ID="1")
    assert turn_into_dynamic_cluster(detect_launch(environ), settings()) is None  # rank 0 starts the scheduler
    assert variables(environ) == {
        "MS_ROLE": "MS_WORKER",
        "MS_WORKER_NUM": "2",
        "MS_SCHED_HOST": "127.0.0.1",
        "MS_SCHED_PORT": "8118",
        "MS_NODE_ID": "1",
        "MS_TOPO_TIMEOUT": "600",
        "GLOG_v": "3",
        "RANK_ID": "1",
        "RANK_SIZE": "2",
        "DEVICE_ID": "4",
    }
    again = detect_launch(environ)
    assert (again.launcher, again.rank, again.world_size, again.device_id) == ("dynamic_cluster", 1, 2, 4)


def test_what_the_user_has_set_is_kept(environ: dict[str, str]) -> None:
    environ.update(RANK_ID="1", RANK_SIZE="2", MS_TOPO_TIMEOUT="60", GLOG_v="1")
    turn_into_dynamic_cluster(detect_launch(environ), settings())
    assert environ["MS_TOPO_TIMEOUT"] == "60" and environ["GLOG_v"] == "1"


def test_a_table_of_one_device_is_only_removed(tmp_path: Path, environ: dict[str, str]) -> None:
    environ.update(RANK_TABLE_FILE=str(write_table(tmp_path, {"server_id": "a"})), RANK_ID="0")
    assert turn_into_dynamic_cluster(detect_launch(environ), settings()) is None
    assert variables(environ) == {"RANK_ID": "0"}


@pytest.mark.parametrize(
    "others",
    [
        {"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "2", "MS_NODE_ID": "0", "RANK_TABLE_FILE": "/chosen/with/msrun"},
        {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
        {"RANK_SIZE": "2", "RANK_ID": "0", "MS_SIMULATION_LEVEL": "1"},
    ],
)
def test_other_launches_and_simulations_are_left_alone(environ: dict[str, str], others: dict[str, str]) -> None:
    environ.update(others)
    before = variables(environ)
    assert turn_into_dynamic_cluster(detect_launch(environ), settings()) is None
    assert variables(environ) == before


def test_a_taken_port_names_itself_and_the_flag(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic_cluster, "PORT_PATIENCE", 0.3)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        environ.update(RANK_ID="0", RANK_SIZE="2")
        with pytest.raises(UserError, match=f"master_port: {port} is taken on this server; .*--master_port"):
            turn_into_dynamic_cluster(detect_launch(environ), settings(master_port=port))


def test_an_address_of_another_server_is_refused_by_rank_0() -> None:
    with pytest.raises(UserError, match=r"master_addr: 192\.0\.2\.1 is not an address of this server"):
        check_port("192.0.2.1", free_port())
