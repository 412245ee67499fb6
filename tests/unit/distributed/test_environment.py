"""What the environment of each launcher and platform means for this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from focal.distributed.environment import check_device_num, detect_launch
from focal.errors import UserError

SERVER_LIST = {
    "status": "completed",
    "server_count": "2",
    "server_list": [
        {"server_id": "10.0.0.1", "device": [{"device_id": str(i), "rank_id": str(i)} for i in range(8)]},
        {"server_id": "10.0.0.2", "device": [{"device_id": str(i), "rank_id": str(8 + i)} for i in range(8)]},
    ],
}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "jobstart_hccl.json"
    path.write_text(json.dumps(SERVER_LIST))
    return path


def test_an_ordinary_shell_is_not_a_launch() -> None:
    assert detect_launch({"PATH": "/bin"}) is None


def test_a_preset_engine_with_one_process_is_not_a_launch() -> None:
    assert detect_launch({"RANK_SIZE": "1", "RANK_ID": "0", "DEVICE_ID": "0", "JOB_ID": "x"}) is None


def test_an_msrun_worker_is_recognised() -> None:
    launch = detect_launch({"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "8", "MS_NODE_ID": "3", "DEVICE_ID": "3"})
    assert (launch.launcher, launch.rank, launch.world_size, launch.device_id) == ("dynamic_cluster", 3, 8, 3)
    assert not launch.is_scheduler


def test_an_msrun_worker_may_leave_its_rank_to_mindspore() -> None:
    launch = detect_launch({"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "16", "DEVICE_ID": "3"})
    assert launch.rank is None and launch.world_size == 16


def test_an_msrun_scheduler_trains_nothing() -> None:
    launch = detect_launch({"MS_ROLE": "MS_SCHED", "MS_WORKER_NUM": "8", "RANK_ID": "0"})
    assert launch.is_scheduler and launch.rank is None


@pytest.mark.parametrize("variable", ["RANK_TABLE_FILE", "MINDSPORE_HCCL_CONFIG_PATH"])
def test_a_rank_table_is_found_by_either_variable(table: Path, variable: str) -> None:
    launch = detect_launch({variable: str(table), "RANK_ID": "9", "DEVICE_ID": "5"})
    assert (launch.launcher, launch.rank, launch.world_size, launch.device_id) == ("rank_table", 9, 16, 5)
    assert launch.rank_table.path == table


def test_without_a_device_id_the_device_is_that_of_the_table(table: Path) -> None:
    assert detect_launch({"RANK_TABLE_FILE": str(table), "RANK_ID": "9"}).device_id == 1


def test_a_preset_engine_with_several_processes_is_a_launch() -> None:
    launch = detect_launch({"RANK_SIZE": "8", "RANK_ID": "5", "DEVICE_ID": "5"})
    assert (launch.launcher, launch.rank, launch.world_size) == ("preset", 5, 8)


def test_an_mpi_process_is_recognised() -> None:
    environ = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
    launch = detect_launch(environ)
    assert (launch.rank, launch.world_size, launch.device_id) == (3, 4, 1)


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"MS_ROLE": "MS_SERVER"}, "MS_ROLE: 'MS_SERVER'"),
        ({"MS_ROLE": "MS_WORKER"}, "MS_WORKER_NUM is not set"),
        ({"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "two"}, "MS_WORKER_NUM: 'two' is not a number"),
        ({"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "2", "MS_NODE_ID": "2"}, "rank 2 .* less than .* 2"),
        ({"RANK_TABLE_FILE": "/does/not/exist.json", "RANK_ID": "0"}, "RANK_TABLE_FILE: .* does not exist"),
        ({"MINDSPORE_HCCL_CONFIG_PATH": "/no.json", "RANK_ID": "0"}, "MINDSPORE_HCCL_CONFIG_PATH: .* does not exist"),
        ({"RANK_SIZE": "8"}, "RANK_ID is not set"),
        ({"RANK_SIZE": "8", "RANK_ID": "8"}, "rank 8 .* less than .* 8"),
    ],
)
def test_contradictions_are_refused(environ: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        detect_launch(environ)


def test_a_rank_table_without_a_rank_is_refused(table: Path) -> None:
    with pytest.raises(UserError, match="RANK_TABLE_FILE is set but RANK_ID is not"):
        detect_launch({"RANK_TABLE_FILE": str(table)})


def test_a_rank_size_that_contradicts_the_rank_table_is_refused(table: Path) -> None:
    with pytest.raises(UserError, match="RANK_SIZE: 8 contradicts RANK_TABLE_FILE, which lists 16"):
        detect_launch({"RANK_TABLE_FILE": str(table), "RANK_ID": "0", "RANK_SIZE": "8"})


def test_device_num_must_agree_with_the_launcher() -> None:
    launch = detect_launch({"RANK_SIZE": "8", "RANK_ID": "5"})
    check_device_num(8, launch)
    check_device_num(1, launch)  # the default says nothing
    with pytest.raises(UserError, match="device_num: 4 contradicts the environment, where preset started 8 workers"):
        check_device_num(4, launch)
