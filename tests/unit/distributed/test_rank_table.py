"""Rank tables of both forms, and what is wrong with others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from focal.distributed.rank_table import RankTable, read_rank_table
from focal.errors import UserError


def device(number: int, **entries: str) -> dict[str, str]:
    return {"device_id": str(number), "device_ip": "192.168.100.1", **entries}


def server(address: str, ranks: range, **entries: str) -> dict[str, Any]:
    devices = [device(position, rank_id=str(rank)) for position, rank in enumerate(ranks)]
    return {"server_id": address, "device": devices, **entries}


TWO_SERVERS = {
    "status": "completed",
    "version": "1.0",
    "server_count": "2",
    "server_list": [server("10.0.0.1", range(8)), server("10.0.0.2", range(8, 16))],
}


def read(folder: Path, table: object) -> RankTable:
    path = folder / "jobstart_hccl.json"
    path.write_text(table if isinstance(table, str) else json.dumps(table))
    return read_rank_table(str(path))


def test_ranks_are_found_on_their_server_and_device(tmp_path: Path) -> None:
    table = read(tmp_path, TWO_SERVERS)
    assert table.world_size == 16
    assert [server.addresses for server in table.servers] == [("10.0.0.1",), ("10.0.0.2",)]
    assert (table.device_of(0), table.device_of(9)) == (0, 1)
    assert table.server_of(9) is table.servers[1]


def test_the_folder_of_modelarts_stands_for_the_table_in_it(tmp_path: Path) -> None:
    path = read(tmp_path, TWO_SERVERS).path
    assert read_rank_table(str(tmp_path)).path == path


def test_the_older_form_numbers_its_devices_in_order(tmp_path: Path) -> None:
    instances = [
        {"devices": [device(i) for i in range(8)], "pod_name": "job0", "server_id": address}
        for address in ("10.0.0.1", "10.0.0.2")
    ]
    table = read(tmp_path, {"status": "completed", "group_list": [{"group_name": "job", "instance_list": instances}]})
    assert table.world_size == 16
    assert table.device_of(11) == 3 and table.server_of(11).addresses == ("10.0.0.2",)


def test_a_containers_own_address_comes_before_its_hosts(tmp_path: Path) -> None:
    entry = server("opaque-id", range(1), host_ip="10.0.0.1", container_ip="172.16.0.5")
    table = read(tmp_path, {"status": "completed", "server_list": [entry]})
    assert table.servers[0].addresses == ("172.16.0.5", "10.0.0.1", "opaque-id")


def test_a_table_of_super_pods_is_read(tmp_path: Path) -> None:
    """Form 1.2: an opaque server_id, host_ip, devices with more entries."""
    entry = {"server_id": "node_0", "host_ip": "10.0.0.1", "device": [device(0, rank_id="0", super_device_id="7")]}
    super_pods = [{"super_pod_id": "0", "server_list": [{"server_id": "node_0"}]}]
    table = read(tmp_path, {"version": "1.2", "server_list": [entry], "super_pod_list": super_pods})
    assert table.servers[0].addresses == ("10.0.0.1", "node_0") and table.world_size == 1


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("not json", "is not a rank table"),
        ([1, 2], "is not a rank table"),
        ({"other": 1}, "is not a rank table"),
        ({"server_list": [{"server_id": "10.0.0.1", "device": [{"device_id": "x"}]}]}, "is not a rank table"),
        ({"status": "initializing", "group_list": []}, "status 'initializing', not 'completed'"),
        ({**TWO_SERVERS, "status": "initializing"}, "status 'initializing'"),
        ({"status": "completed", "server_list": []}, "lists no devices"),
        ({"server_list": [server("a", range(2)), server("b", range(3, 5))]}, r"lists the ranks \[0, 1, 3, 4\]"),
        ({"server_list": [server("a", range(2)), server("b", range(2))]}, r"lists the ranks \[0, 0, 1, 1\]"),
    ],
)
def test_an_unusable_rank_table_is_refused_with_the_reason(tmp_path: Path, table: object, words: str) -> None:
    with pytest.raises(UserError, match=f"^RANK_TABLE_FILE: .*{words}"):
        read(tmp_path, table)


def test_the_error_names_the_variable_that_was_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^MINDSPORE_HCCL_CONFIG_PATH: .*table\.json does not exist"):
        read_rank_table(str(tmp_path / "table.json"), "MINDSPORE_HCCL_CONFIG_PATH")
