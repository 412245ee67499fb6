"""MindSpore's cache of compiled graphs, for the training step, made safe to keep from one start to the next.

MindSpore looks at neither this package's code nor the settings before it uses a cached graph: with another clipping
limit or decay it silently trains with the old one. So each graph has a folder of its own, named by a digest of all that
shapes it. Values of parameters are not part of the cached graph; they always come from the running network.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

import focal
from focal.config import Config
from focal.distributed.chip import ascend_chip
from focal.distributed.device import Device
from focal.distributed.memory import compile_ahead
from focal.distributed.versions import find_cann
from focal.errors import UserError

logger = logging.getLogger("focal")

# Settings that shape no graph. All others are in the digest, so that a new key costs a compilation, not a wrong result.
_NO_PART_OF_THE_GRAPH = frozenset((
    "allow_config_change", "cache_dir", "compile_cache", "data_url", "eval_every", "file_name", "json", "keep_best_max",
    "keep_checkpoint_max", "log_steps", "master_addr", "master_port", "max_nonfinite_steps", "max_steps", "node_rank",
    "num_parallel_workers", "pretrained", "resume", "save_every", "save_steps", "step_timeout", "train_url", "use_ema",
    "worker_processes",
))  # fmt: skip
# Variables by which MindSpore and CANN compile differently.
_COMPILER_VARIABLES = re.compile(r"MS_(DEV|ASCEND|ENABLE|JIT)_")
_SWITCH, _FOLDER = "MS_COMPILER_CACHE_ENABLE", "MS_COMPILER_CACHE_PATH"


def compile_step(step: nn.Cell, batch: Sequence[Tensor], config: Config, device: Device) -> str:
    """Compile a training step for batches like this one, or load it from `compile_cache` if it was compiled before.

    Args:
        step: the Cell.
        batch: its inputs.
        config: all settings.
        device: this process.

    Raises:
        UserError: `compile_cache` cannot be written.

    Returns:
        What was done, for the log: compiled, or loaded from the cache; "" in PyNative mode, where nothing is compiled.
    """
    if config.run.compile_cache is None or ms.get_context("mode") != ms.GRAPH_MODE:
        return "compiled" if compile_ahead(step, *batch) else ""
    if not _entry_script().is_file():  # MindSpore reads it, and fails if it cannot
        logger.warning("compile_cache is not used: it works in a process that runs a script, such as train.py")
        return "compiled" if compile_ahead(step, *batch) else ""
    graph = Path(config.run.compile_cache).absolute() / graph_digest(step, batch, config, device)
    folder = graph / f"rank_{device.rank}"
    found = _files(folder)
    used = folder if found else graph / f"rank_{device.rank}.unfinished-{os.getpid()}"
    with _mindspore_cache(used):
        compile_ahead(step, *batch)
    if found:
        return f"loaded from {folder}" if _files(folder) == found else "compiled"  # MindSpore replaces damaged files
    try:
        used.rename(folder)  # whole or not at all
    except OSError as error:
        if not folder.is_dir():  # else another job was faster
            logger.warning("compile_cache: %s cannot be kept: %s", folder, error)
        shutil.rmtree(used, ignore_errors=True)
    return "compiled"


def _files(folder: Path) -> list[tuple[Path, int]]:
    """Files in a folder, with the times at which they were written; empty if there is no such folder."""
    return sorted((file, file.stat().st_mtime_ns) for file in folder.rglob("*") if file.is_file())


@contextlib.contextmanager
def _mindspore_cache(folder: Path) -> Iterator[None]:
    """Have MindSpore load from `folder` what it compiles within, or keep it there.

    MindSpore numbers the graphs of a process and knows them by that number alone, so only one may be compiled in here.
    """
    before = {name: os.environ.get(name) for name in (_SWITCH, _FOLDER)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"compile_cache: {folder} cannot be written ({error.strerror or error})") from None
    os.environ.update({_SWITCH: "1", _FOLDER: str(folder)})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def graph_digest(step: nn.Cell, batch: Sequence[Tensor], config: Config, device: Device) -> str:
    """Digest of all that shapes the compiled step: code, versions, settings, device, and what its Cells hold."""
    digest = hashlib.sha256()
    for file in [*sorted(Path(focal.__file__).parent.rglob("*.py")), _entry_script()]:
        digest.update(file.read_bytes())
    on_ascend = ms.get_context("device_target") == "Ascend"
    settings = {
        name: value
        for section in dataclasses.fields(config)
        for name, value in dataclasses.asdict(getattr(config, section.name)).items()
        if name not in _NO_PART_OF_THE_GRAPH
    }
    facts = {
        "versions": [ms.__version__, sys.version, str(find_cann(os.environ)) if on_ascend else ""],
        "chip": ascend_chip() if on_ascend else "",
        "jit_level": device.jit_level,
        "world_size": device.world_size,
        "variables": sorted(item for item in os.environ.items() if _COMPILER_VARIABLES.match(item[0])),
        "settings": settings,
        "inputs": [_signature(tensor) for tensor in batch],
        "cells": [[name, type(cell).__qualname__, _constants(cell)] for name, cell in step.cells_and_names()],
    }
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def _entry_script() -> Path:
    """The script that this process runs, as MindSpore finds it."""
    return Path(sys.argv[0])


def _constants(cell: nn.Cell) -> dict[str, Any]:
    """Numbers, words and arrays that a Cell holds, which become constants of the graph, and its parameters' shapes.

    They catch what is decided while the job starts, such as by the size of the dataset or the kind of chip.
    """
    held = {
        name: _constant(value)
        for name, value in vars(cell).items()
        if name not in _OF_ANY_CELL and isinstance(value, (bool, int, float, str, tuple, list, Tensor, np.ndarray))
    }
    parameters = {name: _signature(parameter) for name, parameter in cell.parameters_and_names(expand=False)}
    return {**held, **parameters}


def _constant(value: Any) -> Any:
    if isinstance(value, Parameter):
        return _signature(value)
    if isinstance(value, Tensor):
        value = value.asnumpy()
    if isinstance(value, np.ndarray):
        return [str(value.dtype), value.shape, hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()]
    if isinstance(value, (tuple, list)):
        return [_constant(item) for item in value if isinstance(item, (bool, int, float, str, tuple, list, Tensor))]
    return value


def _signature(tensor: Tensor) -> list[Any]:
    return [getattr(tensor, "name", ""), str(tensor.dtype), list(tensor.shape)]


# MindSpore's own book-keeping, with counters and addresses in it.
_OF_ANY_CELL = frozenset(vars(nn.Cell())) | {"_cell_init_args"}
