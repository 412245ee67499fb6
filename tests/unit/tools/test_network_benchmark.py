"""scripts/benchmark.py infer, train and export: what they report, and the peer. No figure is compared with a time."""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, Optional

import pytest
import yaml

from focal.config import load_config
from focal.errors import UserError
from tools.benchmark import network, timing
from tools.graph_report.dump import REPOSITORY

DIGITS = str(REPOSITORY / "configs" / "quickstart_digits.yaml")
KEYS = {"benchmark", "images_per_second", "step_seconds", "start_up_seconds", "peak_memory_bytes",
        "share_of_matrix_product_peak", "matrix_product_peak_flops", "arch", "batch_size", "image_size", "amp_level",
        "device_target"}  # fmt: skip


def flags(command: str = "infer", steps: int = 2, rounds: int = 1, peer: Optional[str] = None) -> argparse.Namespace:
    return argparse.Namespace(command=command, steps=steps, rounds=rounds, peer=peer)


def peer_saying(text: str, folder: Path, code: int = 0) -> str:
    """A command that prints `text`, notes that it ran, and ends with `code`."""
    program = folder / "peer.py"
    program.write_text(
        f"import sys\nopen({str(folder / 'runs')!r}, 'a').write('x')\nprint({text!r})\nsys.exit({code} and 'boom')\n"
    )
    return shlex.join([sys.executable, str(program)])


@pytest.fixture
def small_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "PEAK_SIDE", 64)  # the product's size does not matter here, its time does


@pytest.fixture
def one_step(small_peak: None) -> dict[str, Any]:
    """A step that counts its calls."""
    return {"calls": 0}


def measure(calls: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    def step() -> None:
        calls["calls"] += 1

    def compile_step() -> None:
        assert calls["calls"] == 0
        calls["compiled"] = calls.get("compiled", 0) + 1

    return timing.measure("infer", lambda: timing.Subject(compile_step, step), 8, 1e6, "CPU", arguments)


def test_flags_have_defaults_and_are_read():
    parser = argparse.ArgumentParser()
    network.add_arguments(parser)
    assert vars(parser.parse_args([])) == {"steps": 10, "rounds": 3, "peer": None}
    given = parser.parse_args(["--steps", "4", "--rounds=2", "--peer", "python other.py --fast"])
    assert (given.steps, given.rounds, given.peer) == (4, 2, "python other.py --fast")


def test_timing_is_the_median_and_the_extremes():
    assert timing.Timing.of([3.0, 1.0, 9.0, 2.0]) == timing.Timing(median=2.5, low=1.0, high=9.0, steps=4)


def test_steps_times_rounds_are_timed_after_compilation(one_step):
    result = measure(one_step, flags(steps=3, rounds=2))
    assert one_step["compiled"] == 1 and one_step["calls"] == 1 + timing.WARM_UP + 3 * 2
    assert result["step_seconds"]["steps"] == 6
    step = result["step_seconds"]
    assert step["low"] <= step["median"] <= step["high"]
    assert result["images_per_second"] == pytest.approx(8 / step["median"])
    fraction = 1e6 / step["median"] / result["matrix_product_peak_flops"]
    assert result["share_of_matrix_product_peak"] == pytest.approx(fraction)
    assert result["peak_memory_bytes"] > 2**20
    assert "ratio_to_peer" not in result


class Clock:
    """Takes the place of the module `time`; stands still unless a test moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def process_time(self) -> float:
        return 1.25


def test_start_up_is_the_time_from_the_command_to_the_end_of_the_first_step(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    monkeypatch.setattr(timing, "seconds_since_start", lambda: 3.0 + clock.now)
    monkeypatch.setattr(timing, "matrix_product_peak", lambda: 1e9)

    def pass_time(seconds: float) -> None:
        clock.now += seconds

    def make() -> timing.Subject:
        pass_time(1.0)
        return timing.Subject(lambda: pass_time(2.0), lambda: pass_time(4.0))

    result = timing.measure("infer", make, 1, 1.0, "CPU", flags(steps=1))
    assert result["start_up_seconds"] == {
        "import": 3.0, "build": 1.0, "compile": 2.0, "first_step": 4.0, "total": 10.0,
    }  # fmt: skip
    assert result["step_seconds"]["median"] == 4.0 and result["images_per_second"] == 0.25


def test_seconds_since_start_count_from_the_start_of_the_process(monkeypatch, tmp_path):
    started = 3 * os.sysconf("SC_CLK_TCK")  # three seconds after the machine
    fields = " ".join(str(started) if number == 22 else "0" for number in range(4, 53))
    (tmp_path / "stat").write_text(f"7 (a name) with) S {fields}\n")  # field 3 follows the last bracket; see proc(5)
    (tmp_path / "uptime").write_text("10.5 20.0\n")
    monkeypatch.setattr(timing, "Path", lambda path: tmp_path / path.rpartition("/")[2])
    monkeypatch.setattr(timing, "time", Clock())
    assert timing.seconds_since_start() == 7.5
    (tmp_path / "stat").unlink()  # not Linux
    assert timing.seconds_since_start() == 1.25


@pytest.mark.parametrize(("steps", "rounds"), [(0, 1), (1, 0), (-2, 3)])
def test_steps_and_rounds_below_one_are_refused(one_step, steps, rounds):
    with pytest.raises(UserError, match=f"steps, rounds: {steps} and {rounds} must be at least 1"):
        measure(one_step, flags(steps=steps, rounds=rounds))
    assert one_step["calls"] == 0


@pytest.mark.parametrize("text", ["images_per_second: 4.0", '{"images_per_second": 4.0}', "images_per_second=4e0"])
def test_the_peer_alternates_and_gives_a_ratio(one_step, tmp_path, text):
    result = measure(one_step, flags(rounds=3, peer=peer_saying(f"warming up\n{text}", tmp_path)))
    assert (tmp_path / "runs").read_text() == "xxx"  # once per round
    assert result["peer_images_per_second"] == 4.0
    assert result["ratio_to_peer"] == pytest.approx(result["images_per_second"] / 4.0)


def test_the_last_figure_of_a_peer_counts(tmp_path):
    command = peer_saying("images_per_second: 1.5\nimages_per_second: 2.5", tmp_path)
    assert timing.run_peer(command) == 2.5


def test_a_peer_that_fails_is_reported_in_one_line(one_step, tmp_path):
    with pytest.raises(UserError) as caught:
        measure(one_step, flags(peer=peer_saying("images_per_second: 4.0", tmp_path, code=1)))
    message = str(caught.value)
    assert "peer.py" in message and "exit code 1" in message and "boom" in message and "\n" not in message


def test_a_peer_without_a_figure_is_refused(tmp_path):
    with pytest.raises(UserError, match="no `images_per_second: N` in its output"):
        timing.run_peer(peer_saying("all is well", tmp_path))


@pytest.fixture
def shallow(tmp_path: Path) -> Path:
    """The quickstart's configuration with its first stage alone."""
    settings = yaml.safe_load(Path(DIGITS).read_text())
    first = {"depths": [1], "num_heads": [1], "focal_levels": [2], "focal_windows": [5], "expand_sizes": [2],
             "focal_stages": [0], "batch_size": 4, "file_format": "MINDIR"}  # fmt: skip
    path = tmp_path / "shallow.yaml"
    path.write_text(yaml.safe_dump({**settings, **first}))
    return path


def check(result: dict[str, Any], command: str) -> None:
    extra = {"file_format"} if command == "export" else set()
    assert set(result) == KEYS | extra | {"peer_images_per_second", "ratio_to_peer"}
    assert (result["benchmark"], result["batch_size"], result["image_size"]) == (command, 4, [64, 64])
    figures = (
        result["images_per_second"],
        result["share_of_matrix_product_peak"],
        *result["start_up_seconds"].values(),
    )
    assert all(math.isfinite(figure) and figure > 0 for figure in figures)
    assert list(result["start_up_seconds"]) == ["import", "build", "compile", "first_step", "total"]
    assert result["ratio_to_peer"] == pytest.approx(result["images_per_second"] / 2.0)


@pytest.mark.parametrize("command", ["train", "export"])
def test_training_and_export_report_and_write_json(small_peak, monkeypatch, shallow, tmp_path, command):
    monkeypatch.setattr(network, "setup_device", lambda run: None)  # earlier tests have set it up for this process
    path = tmp_path / "new" / "result.json"
    config = load_config(str(shallow), {"json": str(path)})
    result = network.run(config, flags(command, steps=1, peer=peer_saying("images_per_second: 2.0", tmp_path)))
    assert json.loads(path.read_text()) == result
    check(result, command)


def test_the_script_prints_a_table_and_writes_json(shallow, tmp_path):
    """scripts/benchmark.py infer, as typed: the table on the terminal, the figures in the file."""
    path, peer = tmp_path / "result.json", peer_saying("images_per_second: 2.0", tmp_path)
    command = [sys.executable, str(REPOSITORY / "scripts" / "benchmark.py"), "infer", "--config", str(shallow),
               "--steps", "1", "--rounds=1", "--peer", peer, "--json", str(path)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    check(json.loads(path.read_text()), "infer")
    assert "images_per_second " in done.stdout and "ratio_to_peer " in done.stdout
