"""Evaluate a checkpoint: python eval.py --config configs/X.yaml --pretrained CKPT --data_url DATA [--use_ema True]"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from pathlib import Path
from typing import Any, Optional

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))  # a plain checkout needs no installation

from focal.checkpoint.paths import check_input_files, check_output_file
from focal.config import Config, ConfigError, config_from_command_line
from focal.distributed.signals import StopSignals
from focal.errors import run_main
from focal.json_files import finite_or_none

logger = logging.getLogger("focal")


def main() -> Optional[int]:
    """Read the command line, start workers if several devices are asked for, else evaluate in this process."""
    # Before NumPy and MindSpore start threads, see StopSignals; importing them takes seconds, so they come after the
    # command line is known to be right.
    with StopSignals(at_once=True):
        from focal.cloud.storage import on_cloud_platform
        from focal.distributed.launcher import is_worker, launch_if_needed

        in_cloud = on_cloud_platform()
        config, unknown_arguments = config_from_command_line(sys.argv[1:], __doc__, tolerate_unknown=in_cloud)
        if config.run.pretrained is None:
            raise ConfigError("pretrained: eval.py needs a checkpoint; give --pretrained CKPT")
        if config.run.json is not None:
            check_output_file("json", config.run.json)
        if not (in_cloud or config.run.run_openi):
            check_input_files(config.run, config.data)
        if is_worker(config):
            return run_worker(config, unknown_arguments)
    return launch_if_needed(config, sys.argv[1:])


def run_worker(config: Config, unknown_arguments: list[str]) -> int:
    """Device, data, network, figures."""
    from focal.cloud.storage import open_storage
    from focal.distributed.device import setup_device, shutdown
    from focal.distributed.logging import setup_logging
    from focal.distributed.versions import check_versions

    device = setup_device(config.run)
    setup_logging(device)
    check_versions()
    with open_storage(config, device, unknown_arguments) as storage:
        result = run_evaluation(storage.local_config(), device, storage.data_folder())
        if device.is_main:
            report(result, config.run.json)
        shutdown()
    return 0


def run_evaluation(config: Config, device: Any, data_folder: str) -> Any:
    """Accuracy of the checkpoint over all images of val, on all ranks together."""
    from focal.checkpoint.weights import assign_weights, read_weights
    from focal.data import EvalData, check_data
    from focal.evaluation import EvalStep, evaluate
    from focal.models import create_model
    from focal.models.inference import prepare_for_evaluation

    assert config.run.pretrained is not None
    weights = read_weights(config.run.pretrained, config.run.use_ema)
    layout = check_data(config, data_folder, splits=("val",))
    network = create_model(config)
    logger.info("%s: %s", config.run.pretrained, assign_weights(network, weights, config.run.pretrained))
    prepare_for_evaluation(network, config.step)
    data = EvalData(config, layout, device.rank, device.world_size)
    return evaluate(EvalStep(network), data, config.data.skip_unreadable)


def report(result: Any, json_file: Optional[str]) -> None:
    """Print the figures and, where asked for, write them as JSON."""
    figures = dataclasses.asdict(result)
    print(f"top-1 {result.top1:.4f} %")
    print(f"top-5 {result.top5:.4f} %")
    print(f"loss {result.loss:.6f}")
    print(f"images {result.images}")
    print(f"images/second {result.images_per_second:.1f}")
    if json_file is not None:
        Path(json_file).write_text(json.dumps(finite_or_none(figures), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_main(main)
