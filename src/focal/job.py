"""What the entry scripts share: command line, launching of workers, device, log and storage."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from typing import TYPE_CHECKING, Callable

from focal.checkpoint.folder_lock import lock_folder
from focal.checkpoint.paths import check_input_files
from focal.config import Config, ConfigError, config_from_command_line, for_one_process
from focal.distributed.signals import StopSignals

if TYPE_CHECKING:
    from focal.cloud.local import Storage
    from focal.distributed.device import Device

logger = logging.getLogger("focal")


@dataclasses.dataclass(frozen=True)
class Job:
    """What one process of a job works with.

    Attributes:
        config: all settings, with paths as the storage has made them local.
        device: this process: its device and rank.
        storage: where data comes from and results go.
        stop: notes a signal that asks for the end.
    """

    config: Config
    device: Device
    storage: Storage
    stop: StopSignals


def run_job(
    description: str,
    work: Callable[[Job], int],
    check: Callable[[Config], None] = lambda config: None,
    stop_at_once: bool = False,
    log_to_file: bool = True,
) -> int:
    """Run an entry script: read the command line, then work in this process or start workers that do.

    Args:
        description: the script's docstring, shown by --help.
        work: what each worker does; returns the exit code.
        check: refuses a configuration, before anything slow is done.
        stop_at_once: a signal ends the process instead of asking `work` to stop.
        log_to_file: each rank keeps a log in train_url, which is locked against other such jobs.

    Returns:
        The exit code of the script.
    """
    # StopSignals has to come before NumPy and MindSpore start their threads. Importing those takes seconds, so it waits
    # until the command line is known to be right.
    with StopSignals(stop_at_once) as stop:
        from focal.cloud.storage import is_cloud_job, on_cloud_platform, resolve_output_folder, send_unsent_results
        from focal.distributed.environment import detect_launch
        from focal.distributed.launcher import is_worker, launch

        config, unknown_arguments = config_from_command_line(
            sys.argv[1:], description, tolerate_unknown=on_cloud_platform()
        )
        check(config)
        if config.run.dry_run and is_cloud_job(config):
            raise ConfigError("dry_run: True cannot count the data of a cloud job without copying it; leave it out")
        if not is_cloud_job(config):
            check_input_files(config.run, config.data)
        # The first process of a job takes the lock, before anything slow starts; of several servers, the first does.
        if log_to_file and not config.run.dry_run and not config.run.node_rank and detect_launch(os.environ) is None:
            lock_folder(resolve_output_folder(config))
        if is_worker(config.run) or config.run.dry_run:
            return _run_worker(config, unknown_arguments, stop, work, log_to_file)
        if stop.received:
            return 128 + stop.received
    code = launch(config.run, sys.argv[1:], resolve_output_folder(config))
    if code:
        send_unsent_results(config)
    return code


def _run_worker(
    config: Config, unknown_arguments: list[str], stop: StopSignals, work: Callable[[Job], int], log_to_file: bool
) -> int:
    from focal.cloud.storage import open_storage, resolve_output_folder
    from focal.distributed.chip import refuse_unsupported
    from focal.distributed.device import setup_device, shutdown
    from focal.distributed.logging import setup_logging
    from focal.distributed.versions import check_versions

    dry_run = config.run.dry_run  # starts no workers, whatever device_num says, and writes nothing
    device = setup_device(for_one_process(config).run if dry_run else config.run)
    output_folder = resolve_output_folder(config) if log_to_file and not dry_run else None
    if output_folder is not None and device.is_main:
        lock_folder(output_folder)  # not yet locked if msrun or a platform has started the ranks
    setup_logging(device.rank, output_folder)
    check_versions()
    if device.jit_level:
        logger.info("jit_level %s (setting: %s)", device.jit_level, config.run.jit_level)
    refuse_unsupported(config.step.amp_level)  # before a cloud job copies its data
    with open_storage(config, device, unknown_arguments) as storage:  # leaving it sends the results, also on an error
        exit_code = work(Job(storage.local_config(), device, storage, stop))
        shutdown()
    return exit_code
