"""Brings data to the job and takes results away: a local folder, ModelArts (moxing) or OpenI (c2net).

One interface for all, so that train.py reads the same everywhere. The platforms' packages are imported only where the
job runs on such a platform.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Callable, Optional

import numpy as np

from focal.cloud.once import job_token, once_per_machine
from focal.cloud.upload import Uploader
from focal.config.schema import Config
from focal.distributed.device import Device, all_reduce_sum
from focal.errors import UserError

logger = logging.getLogger("focal")

COPY_TIMEOUT = 12 * 3600.0  # seconds that a rank waits for the data: ImageNet as single files can take hours
PULSE_SECONDS = 2.0  # between two words of the servers to each other while data are copied
LOCAL, MOXING, C2NET = "local", "moxing", "c2net"


def detect_platform(run_openi: bool, environ: Mapping[str, str]) -> str:
    """Which storage the job has: `c2net` where its variables are set, else `moxing` with --run_openi, or `local`."""
    if environ.get("DATA_DOWNLOAD_METHOD") and environ.get("LOCAL_DATASET_PATH"):
        return C2NET
    return MOXING if run_openi else LOCAL


def on_cloud_platform(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment alone shows a cloud platform, whose unknown flags are then tolerated."""
    return detect_platform(False, environ) != LOCAL


def resolve_output_folder(config: Config, environ: Mapping[str, str] = os.environ) -> str:
    """Local folder for the job's results; known before any storage is opened, for the log.

    Raises:
        UserError: c2net without LOCAL_OUTPUT_PATH.
    """
    platform = detect_platform(config.run.run_openi, environ)
    if platform == C2NET:
        if not environ.get("LOCAL_OUTPUT_PATH"):
            raise UserError("LOCAL_OUTPUT_PATH is not set, although other variables of c2net are; start the task anew")
        return environ["LOCAL_OUTPUT_PATH"]
    if platform == MOXING and is_remote(config.run.train_url):
        return str(Path(config.run.cache_dir) / "output")
    return config.run.train_url


def is_remote(path: str) -> bool:
    """Whether `path` is a URL (obs://, s3://) and not a path of this machine."""
    return "://" in path


def platform_flags(unknown_arguments: Sequence[str]) -> dict[str, str]:
    """`--key value` and `--key=value` of the arguments that the config does not know; a flag alone has the value ""."""
    flags: dict[str, str] = {}
    name = ""
    for argument in unknown_arguments:
        if argument.startswith("--"):
            name, _, value = argument[2:].partition("=")
            flags[name] = value
        elif name and not flags[name]:
            flags[name] = argument
    return flags


class Storage:
    """Storage of a local job, and what all kinds have in common. A context manager: leaving it sends the results.

    Attributes:
        output_folder: local folder that takes the job's results.
        tensorboard_folder: where the platform, or the user, looks for TensorBoard files.
    """

    name = LOCAL

    def __init__(self, config: Config, device: Device, flags: Mapping[str, str]) -> None:
        self.config = config
        self.device = device
        self.flags = flags
        self.output_folder = resolve_output_folder(config, os.environ)
        self.tensorboard_folder = os.environ.get("LOCAL_TENSORBOARD_PATH") or str(
            Path(self.output_folder) / "tensorboard"
        )
        self._token: Optional[str] = None
        self._rounds = 0
        self._data_folder: Optional[str] = None
        self._uploader: Optional[Uploader] = None
        self._closed = False

    def data_folder(self) -> str:
        """Local folder with the data, after bringing it if it is elsewhere: once per machine.

        Every rank must call it. A second call returns the same.

        Raises:
            UserError: the data cannot be had; on every rank of the machine.
        """
        if self._data_folder is None:
            self._data_folder = self._find_data()
        return self._data_folder

    def pretrained(self) -> Optional[str]:
        """Local path of the weights to start from: config.run.pretrained, or what the platform's flags name, or None.

        Every rank must call it.
        """
        return self._fetch(self.config.run.pretrained)

    def resume(self) -> Optional[str]:
        """Local form of config.run.resume: None, "auto", or a path. Every rank must call it.

        With "auto", the checkpoints of an earlier job that wrote to the same train_url are brought to `output_folder`
        first.
        """
        return self._fetch(self.config.run.resume)

    def local_config(self) -> Config:
        """The job's configuration with `pretrained` and `resume` as paths of this machine. Every rank must call it."""
        run = dataclasses.replace(self.config.run, pretrained=self.pretrained(), resume=self.resume())
        return dataclasses.replace(self.config, run=run)

    def _fetch(self, path: Optional[str]) -> Optional[str]:
        return path

    def send_results(self) -> None:
        """Have the results so far sent; returns at once, the sending goes on in the background."""
        if self._uploader is None and self._sends():
            self._uploader = Uploader("sending the results", self._send)
        if self._uploader is not None:
            self._uploader.request()

    def close(self) -> None:
        """Send the last results and wait for it. The local copy stays. A second call does nothing.

        Raises:
            UserError: they could not be sent.
        """
        if self._closed:
            return
        self._closed = True
        self.send_results()
        if self._uploader is None:
            return
        error = self._uploader.close()
        if error is not None:
            raise UserError(
                f"the results could not be sent ({' '.join(str(error).split())}); they are in {self.output_folder}"
            )

    def __enter__(self) -> Storage:
        return self

    def __exit__(self, kind: Optional[type], error: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        try:
            self.close()
        except UserError as problem:
            if error is None:
                raise
            logger.error("%s", problem)  # the error that ended the job is the one to be shown

    def _once_per_machine(self, what: str, work: Callable[[], None]) -> None:
        if self._token is None:
            self._token = job_token(self.device)
        self._rounds += 1  # the same on all ranks, which ask for the same things in the same order
        token = f"{self._token}-{self._rounds}"

        def here() -> None:
            once_per_machine(self.device, what, work, token, COPY_TIMEOUT)

        if self.device.world_size == self.device.local_size:
            here()
        else:
            on_all_servers(self.device, what, here)

    def _find_data(self) -> str:
        return self.config.data.data_url

    def _sends(self) -> bool:
        """Whether this rank has anything to send."""
        return False

    def _send(self) -> None:
        """Take what is new in `output_folder` to the platform's storage; may raise, and is then called again."""
        raise NotImplementedError


def on_all_servers(device: Device, what: str, work: Callable[[], None]) -> None:
    """Run `work` in every rank; return in each when all are done, or raise as soon as one has failed.

    One server may need hours more than another, and no collective call may last that long: the ranks work in a thread,
    and tell each other every few seconds how far they are.

    Raises:
        UserError: it failed elsewhere.
        Exception: that of `work`, if it failed here.
    """
    outcome: list[Optional[Exception]] = []

    def run() -> None:
        try:
            work()
            outcome.append(None)
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run, name=what, daemon=True)
    thread.start()
    while True:
        thread.join(PULSE_SECONDS)
        mine = list(outcome)
        done, failures = all_reduce_sum(np.array([bool(mine), mine not in ([], [None])], np.float32))
        if mine and mine[0] is not None:
            raise mine[0]
        if failures:
            raise UserError(f"{what}: could not be brought to another server; see the logs there")
        if done == device.world_size:
            return


def open_storage(config: Config, device: Device, unknown_arguments: Sequence[str] = ()) -> Storage:
    """The storage of this job. Every rank must call it.

    Args:
        unknown_arguments: flags that the platform added; listed in the log, and used where their meaning is known
            (multi_data_url, ckpt_url, pretrain_url).

    Raises:
        UserError: flags that nobody knows in a local job, or a platform's package that is missing or another one.
    """
    platform = detect_platform(config.run.run_openi, os.environ)
    if unknown_arguments and platform == LOCAL:
        raise UserError(f"unknown arguments: {' '.join(unknown_arguments)}; python train.py --help lists the keys")
    storage = _storage_class(platform)(config, device, platform_flags(unknown_arguments))
    if unknown_arguments:
        logger.info("flags of the platform, not settings of this job: %s", " ".join(unknown_arguments))
    if platform != LOCAL:
        logger.info("storage: %s; results are written to %s", platform, storage.output_folder)
    return storage


def _storage_class(platform: str) -> type[Storage]:
    if platform == MOXING:
        from focal.cloud.moxing import MoxingStorage

        return MoxingStorage
    if platform == C2NET:
        from focal.cloud.c2net import C2netStorage

        return C2netStorage
    return Storage
