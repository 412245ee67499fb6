"""Train a Focal Transformer: python train.py --config configs/X.yaml --data_url DATA --train_url OUT --device_num 8"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Optional

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))  # a plain checkout needs no installation

from focal.checkpoint.paths import check_input_files
from focal.config import Config, config_from_command_line
from focal.distributed.signals import StopSignals
from focal.errors import run_main


def main() -> Optional[int]:
    """Read the command line, start workers if several devices are asked for, else train in this process."""
    # Before NumPy and MindSpore start threads, see StopSignals; importing them takes seconds, so they come after the
    # command line is known to be right.
    with StopSignals() as stop:
        from focal.cloud.storage import on_cloud_platform
        from focal.distributed.launcher import is_worker, launch_if_needed

        in_cloud = on_cloud_platform()
        config, unknown_arguments = config_from_command_line(sys.argv[1:], __doc__, tolerate_unknown=in_cloud)
        if not (in_cloud or config.run.run_openi):
            check_input_files(config.run, config.data)
        if is_worker(config):
            return run_worker(config, unknown_arguments, stop)
        if stop.received:
            return 128 + stop.received
    return launch_if_needed(config, sys.argv[1:])


def run_worker(config: Config, unknown_arguments: list[str], stop: Any) -> int:
    """Device, storage, training, results."""
    from focal.cloud.storage import open_storage, resolve_output_folder
    from focal.distributed.device import setup_device, shutdown
    from focal.distributed.logging import setup_logging
    from focal.distributed.versions import check_versions

    device = setup_device(config.run)
    setup_logging(device, resolve_output_folder(config))
    check_versions()
    with open_storage(config, device, unknown_arguments) as storage:  # leaving it sends the results, also on an error
        exit_code = train(storage.local_config(), device, storage, stop)
        shutdown()
    return exit_code


def train(config: Config, device: Any, storage: Any, stop: Any) -> int:
    """Data, network, step, state, run; returns the exit code."""
    from focal.data import EvalData, TrainData, check_data
    from focal.evaluation import EvalStep
    from focal.trainers.setup import build_network, build_train_step, open_outputs, resume_state
    from focal.trainers.trainer import Trainer

    layout = check_data(config, storage.data_folder())
    train_data = TrainData(config, layout, device.rank, device.world_size)
    eval_data = EvalData(config, layout, device.rank, device.world_size)

    network = build_network(config)
    train_step = build_train_step(config, network, train_data.steps_per_epoch, device)
    progress = resume_state(config, train_step, train_data.steps_per_epoch, device, storage.output_folder)
    outputs = open_outputs(config, device, progress, train_data.steps_per_epoch, storage)

    eval_step = EvalStep(network)
    return Trainer(config, device, train_step, eval_step, train_data, eval_data, progress, outputs, stop).run()


if __name__ == "__main__":
    run_main(main)
