"""What every storage offers, and the storage of a local job: data is used in place, and results stay where they are."""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path
from types import TracebackType
from typing import Callable, Optional

from focal.cloud.once import once_per_machine
from focal.cloud.upload import Uploader
from focal.config.schema import Config
from focal.distributed.device import Device
from focal.errors import UserError, one_line

logger = logging.getLogger("focal")


def is_remote(path: str) -> bool:
    """Whether `path` is a URL (obs://, s3://) and not a path of this machine."""
    return "://" in path


class Storage:
    """Brings data to the job and takes its results away. A context manager: leaving it sends the last results.

    Platforms override `data_folder`, `pretrained`, `teacher`, `resume`, `sends_results` and `_send`.

    Attributes:
        output_folder: local folder that takes the job's results.
        tensorboard_folder: where the platform, or the user, looks for TensorBoard files.
    """

    def __init__(self, config: Config, device: Device, output_folder: str) -> None:
        self.config = config
        self.device = device
        self.output_folder = output_folder
        self.tensorboard_folder = os.environ.get("LOCAL_TENSORBOARD_PATH") or str(Path(output_folder) / "tensorboard")
        self._uploader: Optional[Uploader] = None

    def data_folder(self) -> str:
        """Local folder with the data; data that lies elsewhere is copied first, once per machine.

        Every rank must call it.

        Raises:
            UserError: the data cannot be brought here; raised on every rank.
        """
        return self.config.data.data_url

    def local_config(self) -> Config:
        """The job's configuration with `pretrained` and `resume` as paths of this machine. Every rank must call it."""
        run = dataclasses.replace(self.config.run, pretrained=self.pretrained(), resume=self.resume())
        return dataclasses.replace(self.config, run=run)

    def pretrained(self) -> Optional[str]:
        """Local path of the weights to start from, if any. Every rank must call it."""
        return self.config.run.pretrained

    def with_teacher(self, config: Config) -> Config:
        """`config` with `teacher` as a path of this machine, which only training needs. Every rank must call it."""
        return dataclasses.replace(config, run=dataclasses.replace(config.run, teacher=self.teacher()))

    def teacher(self) -> Optional[str]:
        """Local path of the teacher's checkpoint, if any. Every rank must call it."""
        return self.config.run.teacher

    def resume(self) -> Optional[str]:
        """None, "auto", or the local path of the checkpoint to resume from. Every rank must call it.

        With "auto", the checkpoints that an earlier job sent to the same place are copied to `output_folder` first.
        """
        return self.config.run.resume

    def sends_results(self) -> bool:
        """Whether this process takes results away; one per machine does where they have to leave the machine."""
        return False

    def send_results(self) -> None:
        """Have the results so far sent in the background; returns at once."""
        if self._uploader is None and self.sends_results():
            self._uploader = Uploader("sending the results", self._send)
        if self._uploader is not None:
            self._uploader.request()

    def close(self) -> None:
        """Send the last results and wait until they have arrived. The local copy stays.

        Raises:
            UserError: they could not be sent.
        """
        self.send_results()
        error = None if self._uploader is None else self._uploader.close()
        if error is not None:
            raise UserError(f"the results could not be sent ({one_line(error)}); they are in {self.output_folder}")

    def __enter__(self) -> Storage:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        try:
            self.close()
        except UserError as problem:
            if error is None:
                raise
            logger.error("%s", problem)  # the user has to see the error that ended the job

    def _once_per_machine(self, what: str, work: Callable[[], None]) -> None:
        once_per_machine(self.device, what, work)

    def _send(self) -> None:
        """Send what is new in `output_folder`; called again if it raises."""
        raise NotImplementedError
