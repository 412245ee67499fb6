"""What benchmarks of a network share: timing, the machine's peak, memory, a peer to alternate with, the report."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import resource
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional, TypeVar

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from focal.errors import UserError

logger = logging.getLogger("focal")

WARM_UP = 5  # steps that are not timed: MindSpore's CPU kernels try numbers of threads in their first calls
PEAK_SIDE = 2048  # of the square matrices whose product gives the machine's peak
Result = TypeVar("Result")
_FIGURE = re.compile(r"images_per_second\"?\s*[:=]\s*([0-9.eE+-]+)")


class Subject(NamedTuple):
    """What is timed.

    Attributes:
        compile: makes it ready for its first call.
        run: one step; waits for the result.
    """

    compile: Callable[[], Any]
    run: Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """Seconds per step: the median, and the quickest and slowest of all."""

    median: float
    low: float
    high: float
    steps: int

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        return cls(statistics.median(seconds), min(seconds), max(seconds), len(seconds))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of every network benchmark, beside the keys of the configuration."""
    parser.add_argument("--steps", type=int, default=10, help="steps timed per round (default: 10)")
    add_peer_arguments(parser, rounds=3)


def add_peer_arguments(parser: argparse.ArgumentParser, rounds: int) -> None:
    """Flags of `take_turns`; `rounds` is the default of --rounds."""
    parser.add_argument(
        "--rounds", type=int, default=rounds, help="rounds; with --peer they alternate (default: %(default)s)"
    )
    parser.add_argument("--peer", metavar="COMMAND", help="a command that prints `images_per_second: N`")


def seconds_of(step: Callable[[], Any]) -> float:
    """Wall time of one call; `step` must wait for its result."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def seconds_since_start() -> float:
    """Wall time since this process was started, interpreter and imports included (Linux; elsewhere CPU time)."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        up = float(Path("/proc/uptime").read_text().split()[0])
    except OSError:
        return time.process_time()
    return up - ticks / os.sysconf("SC_CLK_TCK")


def matrix_product_peak() -> float:
    """Floating-point operations a second of a large float32 matrix product on this device, best of five."""
    matrix = Tensor(np.random.default_rng(0).standard_normal((PEAK_SIDE, PEAK_SIDE)).astype(np.float32))

    def step() -> None:
        ops.matmul(matrix, matrix).asnumpy()

    step()
    return 2 * PEAK_SIDE**3 / min(seconds_of(step) for _ in range(5))


def peak_memory_bytes(target: str) -> int:
    """Most memory used so far: of the device where it has its own, else of this process."""
    if target == "CPU":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(ms.runtime.max_memory_allocated())


def run_peer(command: str) -> float:
    """Images per second that another program's benchmark prints.

    Raises:
        UserError: it fails, or prints no such figure.
    """
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    found = _FIGURE.findall(done.stdout)
    if done.returncode or not found:
        reason = f"exit code {done.returncode}" if done.returncode else "no `images_per_second: N` in its output"
        raise UserError(f"peer: {command!r}: {reason}; {(done.stderr.strip().splitlines() or [''])[-1][:200]}")
    return float(found[-1])


def take_turns(measure_once: Callable[[], Result], arguments: argparse.Namespace) -> tuple[list[Result], list[float]]:
    """Call `measure_once` in each round, and after it the peer, if there is one.

    Returns:
        What each round gave, and the peer's images per second in each round (empty without a peer).
    """
    results, peer = [], []
    for _ in range(arguments.rounds):
        results.append(measure_once())
        if arguments.peer:
            peer.append(run_peer(arguments.peer))
    return results, peer


def measure(
    name: str, make: Callable[[], Subject], images: int, flops: float, target: str, arguments: argparse.Namespace,
) -> dict[str, Any]:  # fmt: skip
    """Time a step in rounds, alternating with the peer if there is one.

    Args:
        name: of the benchmark, for the report.
        make: builds what is timed.
        images: per step.
        flops: floating-point operations of a step, matrix products and convolutions alone.
        target: Ascend, CPU or GPU.
        arguments: see `add_arguments`.

    Returns:
        The figures, by name; `images_per_second` is the median's; `start_up_seconds` are those from the command to the
        end of the first step, and its parts.
    """
    if arguments.steps < 1 or arguments.rounds < 1:
        raise UserError(f"steps, rounds: {arguments.steps} and {arguments.rounds} must be at least 1")
    start_up = {"import": seconds_since_start()}
    start = time.perf_counter()
    compile_step, step = make()
    start_up["build"] = time.perf_counter() - start
    start_up["compile"] = seconds_of(compile_step)
    start_up["first_step"] = seconds_of(step)
    start_up["total"] = seconds_since_start()
    for _ in range(WARM_UP):
        step()

    def time_steps() -> tuple[list[float], float]:
        return [seconds_of(step) for _ in range(arguments.steps)], matrix_product_peak()

    rounds, peer = take_turns(time_steps, arguments)
    seconds = [second for of_round, _ in rounds for second in of_round]
    peaks = [peak for _, peak in rounds]
    memory = peak_memory_bytes(target)
    timing = Timing.of(seconds)
    result = {
        "benchmark": name,
        "images_per_second": images / timing.median,
        "step_seconds": {"median": timing.median, "low": timing.low, "high": timing.high, "steps": timing.steps},
        "start_up_seconds": start_up,
        "peak_memory_bytes": memory,
        "share_of_matrix_product_peak": flops / timing.median / statistics.median(peaks),
        "matrix_product_peak_flops": statistics.median(peaks),
    }
    if peer:
        result["peer_images_per_second"] = statistics.median(peer)
        result["ratio_to_peer"] = result["images_per_second"] / result["peer_images_per_second"]
    return result


def report(result: dict[str, Any], json_file: Optional[str]) -> None:
    """Log a result as a table and, where asked for, write it as JSON."""
    for key, value in result.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {entry:.4g}" for name, entry in value.items())
        elif isinstance(value, float):
            value = f"{value:.4g}"
        logger.info("%-30s %s", key, value)
    if json_file is not None:
        Path(json_file).parent.mkdir(parents=True, exist_ok=True)
        Path(json_file).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
