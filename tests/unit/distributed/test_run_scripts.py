"""The shell scripts: usage text, checks, and the command they end in. The interpreter is a stand-in that repeats it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
CONFIG = "configs/focalv2_tiny_useconv_patch4_window7_224.yaml"


@pytest.fixture
def python(tmp_path: Path) -> Path:
    path = tmp_path / "python"
    path.write_text('#!/bin/sh\n[ "$1" = "-c" ] && exit 0\nfor word in "$@"; do echo "$word"; done\n')
    path.chmod(0o755)
    (tmp_path / "data").mkdir()
    return path


def run(script: str, *arguments: object, python: Path, **variables: str) -> subprocess.CompletedProcess:
    clean = {"PATH": os.environ["PATH"], "PYTHON": str(python), **variables}
    command = ["bash", f"scripts/{script}.sh", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, env=clean, capture_output=True, text=True)


def flags(result: subprocess.CompletedProcess) -> dict[str, str]:
    words = result.stdout.split("\n")
    return {words[i][2:]: words[i + 1] for i in range(1, len(words) - 1, 2)}


@pytest.mark.parametrize("script", ["run_standalone_train", "run_distribute_train", "run_eval"])
def test_without_arguments_there_is_a_usage_text(script: str, python: Path) -> None:
    result = run(script, python=python)
    assert result.returncode == 2
    assert result.stderr.startswith("usage") and "DEVICE_TARGET" in result.stderr and "example" in result.stderr


@pytest.mark.parametrize("script", ["run_standalone_train", "run_distribute_train", "run_eval", "run_checks"])
def test_the_shell_accepts_every_script(script: str) -> None:
    assert subprocess.run(["bash", "-n", f"scripts/{script}.sh"], cwd=REPOSITORY).returncode == 0


def test_standalone_training_passes_its_arguments_on(python: Path, tmp_path: Path) -> None:
    result = run(
        "run_standalone_train", CONFIG, tmp_path / "data", "./out", "--epochs", "2", python=python, DEVICE_ID="3"
    )
    assert result.returncode == 0, result.stderr
    given = flags(result)
    assert given["config"] == CONFIG and given["data_url"] == str(tmp_path / "data") and given["train_url"] == "./out"
    assert given["device_target"] == "auto" and given["device_id"] == "3" and given["epochs"] == "2"
    assert result.stdout.startswith(str(REPOSITORY / "scripts" / ".." / "train.py"))


@pytest.mark.parametrize("target", [("--device_target", "CPU"), ("--device_target=CPU",)])
def test_a_device_named_among_the_further_arguments_is_the_only_one(
    target: tuple[str, ...], python: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.ckpt").write_text("")
    starts = {
        "run_standalone_train": (CONFIG, tmp_path / "data", "out"),
        "run_distribute_train": (2, CONFIG, tmp_path / "data", "out"),
        "run_eval": (CONFIG, tmp_path / "a.ckpt", tmp_path / "data"),
    }
    for script, start in starts.items():
        result = run(script, *start, *target, python=python)
        assert result.stdout.count("--device_target") == 1, result.stderr


def test_distributed_training_on_one_server_needs_no_address(python: Path, tmp_path: Path) -> None:
    given = flags(run("run_distribute_train", 8, CONFIG, tmp_path / "data", "out", python=python, DEVICE_TARGET="CPU"))
    assert given["device_num"] == "8" and given["device_target"] == "CPU"
    assert "node_num" not in given and "master_port" not in given


def test_distributed_training_on_several_servers_passes_the_address_on(python: Path, tmp_path: Path) -> None:
    place = {"NODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1"}
    given = flags(run("run_distribute_train", 16, CONFIG, tmp_path / "data", "out", python=python, **place))
    assert (given["device_num"], given["node_num"], given["node_rank"]) == ("16", "2", "1")
    assert (given["master_addr"], given["master_port"]) == ("10.0.0.1", "8118")


def test_evaluation_passes_its_arguments_on(python: Path, tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_text("")
    given = flags(run("run_eval", CONFIG, tmp_path / "a.ckpt", tmp_path / "data", "--use_ema", "True", python=python))
    assert given["pretrained"] == str(tmp_path / "a.ckpt") and given["device_num"] == "1" and given["use_ema"] == "True"


@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        ((8, "configs/no.yaml", "data", "out"), {}, "config: configs/no.yaml does not exist"),
        ((8, CONFIG, "no/data", "out"), {}, "data: no/data is not a folder"),
        (("eight", CONFIG, "configs", "out"), {}, "DEVICES: 'eight' is not a number"),
        ((1, CONFIG, "configs", "out"), {}, "DEVICES: 1 must be at least 2"),
        ((8, CONFIG, "configs", "out"), {"NODES": "3"}, "DEVICES: 8 .* not a multiple of NODES 3"),
        ((8, CONFIG, "configs", "out"), {"NODES": "2", "NODE_RANK": "0"}, "MASTER_ADDR is not set"),
        ((8, CONFIG, "configs", "out"), {"NODES": "2", "MASTER_ADDR": "a"}, "NODE_RANK: '' is not a number"),
        ((8, CONFIG, "configs", "out"), {"NODES": "2", "NODE_RANK": "2", "MASTER_ADDR": "a"}, "NODE_RANK: 2 must be"),
        ((8, CONFIG, "configs", "out"), {"RANK_TABLE_FILE": "/x"}, "RANK_TABLE_FILE is set"),
        ((8, CONFIG, "configs", "out"), {"PYTHON": "no-such-python"}, "interpreter: no-such-python not found"),
    ],
)
def test_each_mistake_is_reported_in_one_line(
    python: Path, arguments: tuple, variables: dict[str, str], words: str
) -> None:
    result = run("run_distribute_train", *arguments, **{"python": python, **variables})
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1

    assert re.search(words, result.stderr), result.stderr
