"""Which storage a job has: local folders, ModelArts' object storage (moxing), or an OpenI task (c2net).

All have the interface of `focal.cloud.local.Storage`, so that train.py reads the same everywhere. The platforms' own
packages are imported only where the job runs on such a platform.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from focal.cloud.c2net import C2netStorage
from focal.cloud.local import Storage, is_remote
from focal.cloud.moxing import MoxingStorage
from focal.config.schema import Config
from focal.distributed.device import Device
from focal.errors import UserError

logger = logging.getLogger("focal")

LOCAL, MOXING, C2NET = "local", "moxing", "c2net"


def detect_platform(run_openi: bool, environ: Mapping[str, str]) -> str:
    """Which storage the job has: `c2net` where its variables are set, else `moxing` with --run_openi, or `local`."""
    if environ.get("DATA_DOWNLOAD_METHOD") and environ.get("LOCAL_DATASET_PATH"):
        return C2NET
    return MOXING if run_openi else LOCAL


def on_cloud_platform(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment alone shows a cloud platform, whose unknown flags are then tolerated."""
    return detect_platform(False, environ) != LOCAL


def is_cloud_job(config: Config) -> bool:
    """Whether a platform brings the data and checkpoints, which then need not be on this machine yet."""
    return detect_platform(config.run.run_openi, os.environ) != LOCAL


def resolve_output_folder(config: Config, environ: Mapping[str, str] = os.environ) -> str:
    """Local folder for the job's results; logs are written there before the storage is opened.

    Raises:
        UserError: c2net without LOCAL_OUTPUT_PATH.
    """
    platform = detect_platform(config.run.run_openi, environ)
    if platform == C2NET:
        if not environ.get("LOCAL_OUTPUT_PATH"):
            raise UserError("LOCAL_OUTPUT_PATH is not set, although other variables of c2net are; start a new task")
        return environ["LOCAL_OUTPUT_PATH"]
    if platform == MOXING and is_remote(config.run.train_url):
        return str(Path(config.run.cache_dir) / "output")
    return config.run.train_url


def open_storage(config: Config, device: Device, unknown_arguments: Sequence[str] = ()) -> Storage:
    """The storage of this job. Every rank must call it.

    Args:
        unknown_arguments: flags that the platform added; they are listed in the log, and those with a known meaning
            (multi_data_url, ckpt_url, pretrain_url) are used.

    Raises:
        UserError: a local job has unknown flags, or a platform's package is missing or a different one of that name.
    """
    platform = detect_platform(config.run.run_openi, os.environ)
    output_folder = resolve_output_folder(config)
    if platform == LOCAL:
        if unknown_arguments:
            raise UserError(f"unknown arguments: {' '.join(unknown_arguments)}; python train.py --help lists the keys")
        return Storage(config, device, output_folder)
    if unknown_arguments:
        logger.info("flags of the platform, not settings of this job: %s", " ".join(unknown_arguments))
    logger.info("storage: %s; results are written to %s", platform, output_folder)
    if platform == C2NET:
        return C2netStorage(config, device, output_folder)
    return MoxingStorage(config, device, output_folder, _parse_flags(unknown_arguments))


def send_unsent_results(config: Config) -> None:
    """After a failed cloud job, send what a killed worker could not; the platform keeps nothing else."""
    if not is_cloud_job(config):
        return
    try:
        open_storage(config, Device(target=config.run.device_target)).close()
    except UserError as error:
        logger.error("%s", error)


def _parse_flags(arguments: Sequence[str]) -> dict[str, str]:
    """Values of `--key value` and `--key=value` by key; a key alone has the value ""."""
    flags: dict[str, str] = {}
    name = ""
    for argument in arguments:
        if argument.startswith("--"):
            name, _, value = argument[2:].partition("=")
            flags[name] = value
        elif name and not flags[name]:
            flags[name] = argument
    return flags
