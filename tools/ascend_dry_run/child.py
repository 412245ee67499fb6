"""Run by simulate.py in a process with a simulated Ascend: builds one case by the product's own start-up, compiles it.

Usage: python -m tools.ascend_dry_run.child CASE.json RESULT.json
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np

from focal.config import Config, load_config
from focal.data import blank_batch
from focal.data.transforms.on_device import Normalize
from focal.distributed.device import Device, setup_device
from focal.errors import UserError
from focal.evaluation import EvalStep
from focal.models import attention_choice, create_model
from focal.models.ascend_forms import use_ascend_forms
from focal.models.inference import prepare_for_evaluation
from focal.trainers.setup import build_network, build_train_step
from tools.ascend_dry_run.cases import TRAIN, Case
from tools.ascend_dry_run.result import COMPILING

STEPS_PER_EPOCH = 1000  # only the schedule's constants depend on it


def stand_in_for_other_ranks() -> None:
    """A place where simulation cannot follow the product: a collective that runs outside a graph.

    MindSpore simulates rank 0 of RANK_SIZE without any other process, so such a collective returns nothing that means
    anything. The start-up asks one which ranks share a machine; the answer given here is: all.
    """
    from focal.distributed import device

    assert callable(device._place_on_machine)  # the name that is replaced; else nothing would be
    device._place_on_machine = lambda rank, world_size: (rank, world_size)


def stand_in_for_comparison(operator_gives_bias_gradient: bool) -> None:
    """The other such place: the comparison of flash with products needs numbers, and simulation computes none.

    The answer given here is: they agree, except perhaps in the gradient of the bias.
    """
    assert callable(attention_choice.judge)  # the name that is replaced; else nothing would be
    verdict = attention_choice.Verdict("", operator_gives_bias_gradient)
    attention_choice.judge = lambda attention, half, training: verdict


def example_inputs(config: Config, what: str) -> tuple[ms.Tensor, ...]:
    """Inputs of the Cell that `build` returns, of the shapes and types that the product feeds it."""
    if what == TRAIN:
        return tuple(map(ms.Tensor, blank_batch(config)))
    batch = config.data.batch_size
    images = ms.Tensor(np.zeros((batch, config.model.in_channels, *config.model.image_hw), np.uint8))
    return images, ms.Tensor(np.zeros(batch, np.int32)), ms.Tensor(np.ones(batch, np.float32))


def build(config: Config, what: str, device: Device) -> ms.nn.Cell:
    """The training step as train.py builds it, or the evaluation as eval.py does."""
    if what == TRAIN:
        return build_train_step(config, build_network(config), STEPS_PER_EPOCH, device)
    network = create_model(config)
    prepare_for_evaluation(network, config.step)
    return EvalStep(network, Normalize(config.data)).set_train(False)


def compile_case(case: Case, result: dict[str, Any]) -> None:
    """Build, compile, and run one step of the simulation; fills in `result` what DryRun does not read from the log."""
    # The ranks are the case's, and weights change no graph.
    overrides = {**case.overrides, "device_target": "Ascend", "device_num": 1, "pretrained": None}
    if case.batch:
        overrides["batch_size"] = case.batch
    if case.jit_level:
        overrides["jit_level"] = case.jit_level
    config = load_config(case.config, overrides)
    result.update(arch=config.model.arch, batch=config.data.batch_size)
    stand_in_for_other_ranks()
    stand_in_for_comparison(case.flash_gives_bias_gradient)
    device = setup_device(config.run)
    result["jit_level"] = device.jit_level
    if device.jit_level:
        ms.set_context(jit_config={"jit_level": "O0"})  # of what runs while the network is built: GE could not
    if case.build:
        module, _, function = case.build.partition(":")
        cell, inputs = getattr(importlib.import_module(module), function)(config, device)
    else:
        cell, inputs = build(config, case.what, device), example_inputs(config, case.what)
    if device.jit_level == "O2":
        use_ascend_forms(cell, False)  # in a job, the level is known before anything is built, and decides these forms
    if device.jit_level:
        ms.set_context(jit_config={"jit_level": device.jit_level})
    sys.stderr.flush()
    os.write(2, f"\n{COMPILING}\n".encode())  # MindSpore's log is written there as well, unbuffered
    outputs = cell(*inputs)
    for output in outputs if isinstance(outputs, tuple) else (outputs,):
        output.asnumpy()
    result["peak_memory_bytes"] = int(ms.runtime.max_memory_allocated())


def main() -> None:
    case_file, result_file = map(Path, sys.argv[1:])
    start = time.time()
    case = Case(**json.loads(case_file.read_text(encoding="utf-8")))
    result: dict[str, Any] = {"error": "", "soc": case.soc}
    try:
        compile_case(case, result)
    except UserError as error:
        result["error"] = str(error)
    except Exception as error:  # whatever the compiler says is the result
        traceback.print_exc()
        reason = str(error).partition("- C++ Call Stack")[0].rstrip(" -\n")
        result["error"] = f"{type(error).__name__}: {' '.join(reason.split())[:500]}"
    result["seconds"] = time.time() - start
    result_file.write_text(json.dumps(result), encoding="utf-8")
    sys.stderr.flush()
    os._exit(0)  # taking the simulated device down may crash, after all is known


if __name__ == "__main__":
    main()
