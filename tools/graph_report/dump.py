"""MindSpore's own text of the graphs that eval.py and train.py run, made without running them.

Compilation stops when shapes and types are known (`MS_DEV_PRECOMPILE_ONLY`), so that graphs and batches that only fit
an accelerator can be looked at on any machine. The text is that of the `validate` stage: differentiated, and optimised
as far as that does not depend on the device. It happens in a process of its own: such settings are read once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from focal.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
MODES = ("infer", "train", "export")


@dataclass(frozen=True)
class GraphRequest:
    """One graph to compile.

    Attributes:
        config: YAML file, or the settings themselves.
        mode: infer: a forward pass with folded bias, as in eval.py; train: the whole training step; export: the network
            that export.py writes.
        batch_size: images; 0: the configuration's.
        for_ascend: with the operations that networks take on an Ascend where those for a CPU differ (GELU by Erf,
            products and additions that broadcast).
        overrides: settings that replace those of `config`.
    """

    config: Any
    mode: str
    batch_size: int = 0
    for_ascend: bool = False
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """A compiled graph: its text, and what it is of."""

    text: str
    arch: str
    batch_size: int


def dump_graphs(requests: Sequence[GraphRequest], folder: Path) -> list[Graph]:
    """Compile the requested graphs one after the other in one process.

    Args:
        requests: what to compile.
        folder: for what MindSpore writes.

    Raises:
        UserError: the compilation failed.
    """
    named = [{**asdict(request), "config": _absolute(request.config)} for request in requests]
    command = [sys.executable, "-m", "tools.graph_report.dump", json.dumps(named)]
    done = subprocess.run(command, cwd=folder, env=dump_environment(folder), capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        names = ", ".join(dict.fromkeys(_name(request.config) for request in requests))
        raise UserError(f"{names}: compiling the graph failed: {reason}")
    result = json.loads(done.stdout.strip().splitlines()[-1])
    return [Graph(Path(entry["path"]).read_text(encoding="utf-8"), entry["arch"], entry["batch"]) for entry in result]


def dump_environment(folder: Path) -> dict[str, str]:
    """Environment of a process that calls `compile_cell`; graphs go to `folder`/graphs."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "src"), os.environ.get("PYTHONPATH", "")]),
        "MS_DEV_SAVE_GRAPHS": "1",
        "MS_DEV_SAVE_GRAPHS_PATH": str(folder / "graphs"),
        "MS_DEV_DUMP_IR_PASSES": "validate",
    }


def compile_cell(cell: Any, *inputs: Any) -> Path:
    """Compile a Cell for inputs of these shapes, in a process with `dump_environment`. Returns the graph's file."""
    folder = Path(os.environ["MS_DEV_SAVE_GRAPHS_PATH"])
    before = set(folder.glob("*validate*.ir"))
    os.environ["MS_DEV_PRECOMPILE_ONLY"] = "1"
    try:
        cell.compile(*inputs)
    finally:
        del os.environ["MS_DEV_PRECOMPILE_ONLY"]
    written = set(folder.glob("*validate*.ir")) - before
    if not written:
        raise UserError(f"{type(cell).__name__}: this MindSpore wrote no graph")
    return max(written, key=_number)


def _name(config: Any) -> str:
    return str(config.get("arch", "arch")) if isinstance(config, dict) else str(config)


def _absolute(config: Any) -> Any:
    return os.path.abspath(config) if isinstance(config, (str, Path)) else config


def _compile(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """In the child: build and compile each, and say where its text is."""
    import mindspore as ms

    from focal.config import load_config
    from focal.data import blank_batch
    from focal.distributed.device import setup_device

    results = []
    for request in requests:
        batch_size = request["batch_size"]
        overrides = {**request["overrides"], "device_target": "CPU", "device_num": 1}
        if batch_size:
            overrides["batch_size"] = batch_size
        config = load_config(request["config"], overrides)
        setup_device(config.run)
        batch = blank_batch(config)
        inputs = [ms.Tensor(batch.images.astype("float32"))]
        if request["mode"] == "train":
            cell, inputs = _training_step(config), [ms.Tensor(array) for array in batch]
        else:
            cell = _inference(config, request["mode"])
        if request["for_ascend"] and request["mode"] != "export":  # whose operations are those of no device
            take_ascend_forms(cell)
        path = compile_cell(cell, *inputs)
        results.append({"path": str(path), "arch": config.model.arch, "batch": config.data.batch_size})
    return results


def _number(path: Path) -> int:
    """Which dump of the process it is: the end of its name."""
    return int(path.stem.rpartition("_")[2])


def _training_step(config: Any) -> Any:
    from focal.distributed.device import Device
    from focal.trainers.setup import build_network, build_train_step

    return build_train_step(config, build_network(config), 1000, Device())


def _inference(config: Any, mode: str) -> Any:
    from focal.models import create_model
    from focal.models.inference import prepare_for_evaluation, prepare_for_export

    network = create_model(config)
    if mode == "export":  # always float32
        prepare_for_export(network)
        return network
    prepare_for_evaluation(network, config.step)
    return network


def take_ascend_forms(network: Any) -> None:
    """Let Cells that choose operations by the device choose those for an Ascend."""
    from focal.models.ascend_forms import use_ascend_forms
    from focal.models.cpu_forms import use_cpu_forms

    use_cpu_forms(network, False)
    use_ascend_forms(network, True)


if __name__ == "__main__":
    from focal.errors import run_main

    run_main(lambda: sys.stdout.write(json.dumps(_compile(json.loads(sys.argv[1]))) + "\n") and None)
