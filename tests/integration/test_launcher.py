"""The launcher with real processes: start, terminal and logs, failure, signals, other launchers.

What is launched is a stand-in for train.py; test_distributed.py has the real one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from focal.distributed.dynamic_cluster import free_port
from tests.integration.jobs import Job, job, python

SCRIPT = "tests/integration/launched_worker.py"
START = 60.0  # seconds for two workers to be ready on a busy machine

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at processes through /proc")


def ready(output: Path, running: Job) -> None:
    """Wait until both ranks have worked together for a few steps."""
    running.wait_until(lambda: all((output / f"result_{rank}.json").exists() for rank in (0, 1)), START)


def results(folder: Path) -> list[dict]:
    return [json.loads((folder / f"result_{rank}.json").read_text()) for rank in (0, 1)]


def test_two_workers_start_work_together_and_end(tmp_path: Path) -> None:
    """Start to end: ranks, collectives, broadcast, terminal, logs."""
    with job(python(SCRIPT, device_num=2, train_url=tmp_path), tmp_path / "out", FOCAL_TEST="collectives") as running:
        assert running.wait(START) == 0, running.output
        assert running.left_behind() == {}
        output = running.output
    first, second = results(tmp_path)
    assert first["device"] == [0, 2, 0, 2] and second["device"] == [1, 2, 1, 2]
    for result in (first, second):
        assert result["scalar"] == 3.0
        assert result["matrix"] == [[2.0] * 3] * 2
        assert result["count"] == [2**24 - 1]  # the last odd count that float32 holds
        assert result["after"] == first["before"]  # rank 0's values, to the bit
        assert result["shapes"] == {"float32": [8], "float16": [2, 3], "int32": [2], "bool": [3], "scalar": []}
    assert first["before"] != second["before"]
    assert "rank 0 of 2 is ready" in output and "rank 1 of 2" not in output
    assert "DISTRIBUTED(" not in output
    for rank in (0, 1):
        assert f"rank {rank} of 2 is ready" in (tmp_path / "log" / f"rank_{rank}.log").read_text()
        assert (tmp_path / "log" / f"worker_{rank}.log").exists()


def test_a_killed_worker_ends_the_job(tmp_path: Path) -> None:
    with job(python(SCRIPT, device_num=2, train_url=tmp_path), tmp_path / "out", FOCAL_TEST="hang") as running:
        ready(tmp_path, running)
        assert sorted(running.processes().values()) == ["launcher", "rank 0", "rank 1", "scheduler"]
        killed = time.monotonic()
        os.kill(running.pid_of("rank 1"), signal.SIGKILL)
        assert running.wait(60) == 128 + signal.SIGKILL
        print(f"job ended {time.monotonic() - killed:.1f} s after rank 1 was killed")
        assert running.left_behind() == {}
        assert "rank 1 was killed by signal 9 (SIGKILL); the other workers are ended" in running.output


def test_a_worker_that_fails_at_start_ends_the_job(tmp_path: Path) -> None:
    command = python(SCRIPT, device_num=2, train_url=tmp_path)
    with job(command, tmp_path / "out", FOCAL_TEST="fail_at_start") as running:
        assert running.wait(60) == 3
        assert running.left_behind() == {}
        assert "rank 1 failed with exit code 3" in running.output
        assert "cannot find the thing I need" in running.output  # its last lines, although it is not rank 0


def test_nothing_survives_a_killed_launcher(tmp_path: Path) -> None:
    with job(python(SCRIPT, device_num=2, train_url=tmp_path), tmp_path / "out", FOCAL_TEST="hang") as running:
        ready(tmp_path, running)
        running.process.kill()
        running.process.wait()
        assert running.left_behind() == {}


def test_ctrl_c_reaches_the_workers(tmp_path: Path) -> None:
    with job(python(SCRIPT, device_num=2, train_url=tmp_path), tmp_path / "out", FOCAL_TEST="hang") as running:
        ready(tmp_path, running)
        running.process.send_signal(signal.SIGINT)
        assert running.wait(60) == 130
        assert running.left_behind() == {}
        assert "ended by SIGINT" in running.output
        assert "interrupted" in (tmp_path / "log" / "worker_0.log").read_text()  # a KeyboardInterrupt, in time to save


def test_a_taken_port_is_refused_at_once(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = python(SCRIPT, device_num=2, train_url=tmp_path, master_port=port)
        with job(command, tmp_path / "out") as running:
            assert running.wait(30) == 2
            assert f"error: master_port: {port} is taken on this server" in running.output
            assert running.left_behind() == {}


def test_device_num_against_the_environment_is_refused(tmp_path: Path) -> None:
    command = python(SCRIPT, device_num=4, train_url=tmp_path)
    with job(command, tmp_path / "out", RANK_SIZE="8", RANK_ID="0", DEVICE_ID="0") as running:
        assert running.wait(30) == 2
        assert "error: device_num: 4 contradicts the environment" in running.output


def test_under_msrun_nothing_is_launched_again(tmp_path: Path) -> None:
    msrun = shutil.which("msrun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert msrun, "MindSpore's msrun is not beside the interpreter"
    command = [msrun, "--worker_num=2", "--local_worker_num=2", "--join=True", f"--log_dir={tmp_path / 'msrun'}"]
    command += [f"--master_port={free_port()}", *python(SCRIPT, device_num=2, train_url=tmp_path)[1:]]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # msrun takes `python` from PATH
    with job(command, tmp_path / "out", FOCAL_TEST="collectives", PATH=path) as running:
        assert running.wait(START) == 0, running.output
        assert running.left_behind() == {}
    assert [result["device"] for result in results(tmp_path)] == [[0, 2, 0, 2], [1, 2, 1, 2]]
    assert not (tmp_path / "log" / "scheduler.log").exists()  # ours was not started


@pytest.mark.slow
def test_two_servers_work_together_and_end_together(tmp_path: Path) -> None:
    """Two launchers, as on two servers; the death of a worker of one ends the other."""
    port = free_port()
    commands = [
        python(SCRIPT, device_num=2, node_num=2, node_rank=node, master_port=port, train_url=tmp_path)
        for node in (0, 1)
    ]
    with job(commands[0], tmp_path / "out_0", FOCAL_TEST="hang") as first:
        with job(commands[1], tmp_path / "out_1", FOCAL_TEST="hang") as second:
            ready(tmp_path, first)
            assert sorted(first.processes().values()) == ["launcher", "rank 0", "scheduler"]
            assert sorted(second.processes().values()) == ["launcher", "rank 1"]
            killed = time.monotonic()
            os.kill(second.pid_of("rank 1"), signal.SIGKILL)
            assert second.wait(60) == 128 + signal.SIGKILL
            assert first.wait(60 - (time.monotonic() - killed)) != 0
            print(f"the other server ended {time.monotonic() - killed:.1f} s after a worker was killed")
            assert first.left_behind() == {} and second.left_behind() == {}
        assert "rank 0" in first.output and "see the logs of the others" in first.output


def make_store(folder: Path) -> Path:
    """An object store with a dataset of four images."""
    for split in ("train", "val"):
        for index in range(2):
            image = folder / "bucket" / "digits" / split / "cat" / f"{split}{index}.jpg"
            image.parent.mkdir(parents=True, exist_ok=True)
            image.write_bytes(b"x" * 100)
    return folder


def cloud(tmp_path: Path) -> list[str]:
    return python(
        SCRIPT,
        device_num=2,
        run_openi=True,
        data_url="obs://bucket/digits",
        train_url="obs://bucket/out",
        cache_dir=tmp_path / "cache",
        unknown_platform_flag="7",
    )


def test_a_cloud_job_copies_once_and_sends_its_results(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    environment = {"FOCAL_TEST": "moxing", "FOCAL_TEST_STORE": str(store), "TMPDIR": str(tmp_path)}
    with job(cloud(tmp_path), tmp_path / "out", **environment) as running:
        assert running.wait(START) == 0, running.output
        assert running.left_behind() == {}
        assert (
            "flags of the platform, not settings of this job: --unknown_platform_flag=7"
            in (tmp_path / "cache" / "output" / "log" / "worker_0.log").read_text()
        )
    first, second = results(tmp_path / "cache")
    assert first["images"] == second["images"] == ["train0.jpg", "train1.jpg", "val0.jpg", "val1.jpg"]
    assert (first["copies"], second["copies"]) == (1, 0)
    assert (store / "bucket" / "out" / "last.ckpt").read_text() == "weights"
    assert (tmp_path / "cache" / "output" / "last.ckpt").exists()


def test_results_of_a_killed_worker_are_sent_by_the_launcher(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    environment = {"FOCAL_TEST": "moxing_dies", "FOCAL_TEST_STORE": str(store), "TMPDIR": str(tmp_path)}
    with job(cloud(tmp_path), tmp_path / "out", **environment) as running:
        assert running.wait(START) == 128 + signal.SIGKILL, running.output
        assert running.left_behind() == {}
    assert (store / "bucket" / "out" / "last.ckpt").read_text() == "weights"
    assert (store / "bucket" / "out" / "log" / "worker_1.log").exists()  # what one needs to find the cause


def test_a_failed_copy_reaches_every_rank(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    environment = {"FOCAL_TEST": "moxing_fails", "FOCAL_TEST_STORE": str(store), "TMPDIR": str(tmp_path)}
    with job(cloud(tmp_path), tmp_path / "out", **environment) as running:
        running.wait(START)
        assert running.left_behind() == {}
    first, second = results(tmp_path / "cache")
    assert "access denied" in first["error"] and "access denied" in second["error"]
    assert "data: rank 0 failed" in second["error"]
    assert abs(first["time"] - second["time"]) < 5.0
