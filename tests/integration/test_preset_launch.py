"""Jobs whose processes a platform starts: with a rank table, or RANK_ID and RANK_SIZE alone. No launcher of ours."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Optional

import pytest

from focal.distributed.dynamic_cluster import free_port
from tests.integration.digits import write_digits
from tests.integration.jobs import Job, job, python
from tests.integration.test_distributed import NANO, PATIENCE

SCRIPT = "tests/integration/launched_worker.py"
START = 120.0  # seconds for all ranks to meet, work and end on a busy machine
FAILURE = 60.0  # seconds within which docs/distributed.md promises that a lost rank ends the others

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at processes through /proc")


def rank_table(folder: Path, addresses: Sequence[str], devices: int = 1) -> Path:
    """ModelArts' table of servers with so many devices each."""
    servers = [
        {
            "server_id": address,
            "device": [
                {"device_id": str(i), "device_ip": "192.168.100.1", "rank_id": str(number * devices + i)}
                for i in range(devices)
            ],
        }
        for number, address in enumerate(addresses)
    ]
    path = folder / "jobstart_hccl.json"
    path.write_text(json.dumps({"status": "completed", "version": "1.0", "server_list": servers}))
    return path


@contextlib.contextmanager
def ranks(command: list[str], folder: Path, size: int = 2, **environment: Optional[str]) -> Iterator[list[Job]]:
    """The processes of a job, started as a platform starts them: the same command, each with its RANK_ID."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                job(command, folder / f"out_{rank}", RANK_ID=str(rank), RANK_SIZE=str(size), **environment)
            )
            for rank in range(size)
        ]


def finish(running: Sequence[Job], timeout: float = START) -> None:
    """Wait for all ranks to end well and to leave nothing behind."""
    deadline = time.monotonic() + timeout
    for one in running:
        assert one.wait(max(1.0, deadline - time.monotonic())) == 0, "\n".join(each.output for each in running)
    assert [one.left_behind() for one in running] == [{}] * len(running)


def results(folder: Path, size: int = 2) -> list[dict]:
    return [json.loads((folder / f"result_{rank}.json").read_text()) for rank in range(size)]


def work_together(folder: Path, size: int = 2, **environment: Optional[str]) -> None:
    """Run all collective calls; every rank must know its place and get the right sums."""
    command = python(SCRIPT, train_url=folder, master_port=free_port())
    with ranks(command, folder, size, FOCAL_TEST="collectives", **environment) as running:
        finish(running)
    found = results(folder, size)
    assert [result["device"] for result in found] == [[rank, size, rank, size] for rank in range(size)]
    for result in found:
        assert result["scalar"] == size * (size + 1) / 2
        assert result["after"] == found[0]["before"]  # rank 0's values on all, to the bit


def test_ranks_work_together_by_a_table_in_modelarts_folder(tmp_path: Path) -> None:
    """Called by a name that nobody can resolve: a server reaches itself without it."""
    rank_table(tmp_path, ["server-of-modelarts.invalid"], devices=2)
    work_together(tmp_path, RANK_TABLE_FILE=str(tmp_path))


def test_ranks_work_together_by_a_table_of_two_servers(tmp_path: Path) -> None:
    """The scheduler listens at the address of rank 0's server, which is not the machine's usual one."""
    table = rank_table(tmp_path, ["127.0.0.2", "127.0.0.1"])
    work_together(tmp_path, RANK_TABLE_FILE=str(table))


def test_ranks_work_together_by_a_table_of_the_other_variable(tmp_path: Path) -> None:
    table = rank_table(tmp_path, ["127.0.0.1"], devices=2)
    work_together(tmp_path, MINDSPORE_HCCL_CONFIG_PATH=str(table))


def test_ranks_work_together_without_a_table(tmp_path: Path) -> None:
    work_together(tmp_path, size=3)


def test_a_taken_port_is_refused_by_rank_0(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with job(
            python(SCRIPT, train_url=tmp_path, master_port=port), tmp_path / "out", RANK_ID="0", RANK_SIZE="2"
        ) as running:
            assert running.wait(START) == 2
            assert f"error: master_port: {port} is taken on this server; choose another --master_port" in running.output
            assert running.left_behind() == {}


def ready(folder: Path, running: Sequence[Job]) -> None:
    """Wait until all ranks have worked together for a few steps."""
    for rank, one in enumerate(running):
        one.wait_until(lambda rank=rank: (folder / f"result_{rank}.json").exists(), START)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_rank_ends_the_others(tmp_path: Path, lost: int) -> None:
    """Rank 0 has the scheduler as its child, so its loss is another one than that of rank 1."""
    command = python(SCRIPT, train_url=tmp_path, master_port=free_port())
    with ranks(command, tmp_path, FOCAL_TEST="hang") as running:
        ready(tmp_path, running)
        schedulers = [pid for pid, role in running[0].processes().items() if role == "scheduler"]
        for pid in schedulers:
            os.kill(pid, signal.SIGTERM)  # a platform that stops a job may signal all processes
        time.sleep(2.0)
        assert [one.process.poll() for one in running] == [None, None]
        assert schedulers and set(schedulers) < set(running[0].processes())
        killed = time.monotonic()
        running[lost].process.send_signal(signal.SIGKILL)
        assert running[1 - lost].wait(FAILURE) != 0
        print(f"\nrank {1 - lost} ended {time.monotonic() - killed:.1f} s after rank {lost} was killed")
        assert [one.left_behind(patience=15.0) for one in running] == [{}, {}]


@pytest.mark.slow
def test_train_py_and_eval_py_run_with_a_rank_table_of_two_servers(tmp_path: Path) -> None:
    """The real scripts: a training of two ranks, and its evaluation."""
    (tmp_path / "nano.yaml").write_text(NANO)
    table = rank_table(tmp_path, ["127.0.0.1", "127.0.0.2"])
    given = {
        "config": tmp_path / "nano.yaml",
        "data_url": write_digits(tmp_path / "digits", train=16, val=5),
        "train_url": tmp_path / "output",
        "batch_size": 2,
    }
    command = python("train.py", epochs=1, max_steps=3, master_port=free_port(), **given)
    with ranks(command, tmp_path, RANK_TABLE_FILE=str(table)) as running:
        finish(running, PATIENCE)
    records = [json.loads(line) for line in (tmp_path / "output" / "metrics.jsonl").read_text().splitlines()]
    assert [record["update"] for record in records if record["kind"] == "train"] == [1, 2, 3]

    checkpoint = tmp_path / "output" / "checkpoints" / "last.ckpt"
    figures = tmp_path / "figures.json"
    command = python("eval.py", pretrained=checkpoint, json=figures, master_port=free_port(), **given)
    with ranks(command, tmp_path, RANK_TABLE_FILE=str(table)) as running:
        finish(running, PATIENCE)
    assert json.loads(figures.read_text())["images"] == 5
    assert "RANK_TABLE_FILE" not in os.environ
