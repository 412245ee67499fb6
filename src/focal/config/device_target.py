"""What `device_target: auto` means on this machine. Nothing here imports MindSpore."""

from __future__ import annotations

import dataclasses
import glob
import logging
import os
from collections.abc import Mapping, Sequence

from focal.config.checks import check_combinations
from focal.config.schema import Config

logger = logging.getLogger("focal")

# Devices (of a host, and of a container with a part of a chip), and the folder in which driver and CANN are installed.
ASCEND_FILES = ("/dev/davinci*", "/dev/vdavinci*", "/usr/local/Ascend")


def find_target(environ: Mapping[str, str] = os.environ, files: Sequence[str] = ASCEND_FILES) -> str:
    """Ascend if the machine shows any sign of one, else CPU.

    A device, an installation of CANN or one of its variables is sign enough: where an Ascend cannot be used, a job must
    fail with MindSpore's reason, and not train for weeks on the CPU.

    Args:
        environ: variables such as ASCEND_HOME_PATH, which CANN's set_env.sh sets.
        files: patterns of files that exist with an Ascend.
    """
    if any(name.startswith("ASCEND_") for name in environ) or any(glob.glob(pattern) for pattern in files):
        return "Ascend"
    return "CPU"


def resolve_target(device_target: str) -> str:
    """The kind of device for the setting `device_target`, which may be auto."""
    return find_target() if device_target == "auto" else device_target


def fit_to_machine(config: Config) -> Config:
    """`config` with the device that `device_target: auto` finds here; any other `device_target` changes nothing.

    The settings of a job for an Ascend are unusable on a CPU: float16 is slower there than float32, and the processes
    of several devices would share its cores. So `amp_level` becomes O0, `device_num` 1 and `dataset_sink_mode` False,
    and a warning says so. A job on several servers is meant for accelerators, and its target is always Ascend.

    Raises:
        ConfigError: what is left of the settings cannot work there.
    """
    run = config.run
    if run.device_target != "auto":
        return config
    if run.node_num > 1 or find_target() == "Ascend":
        return dataclasses.replace(config, run=dataclasses.replace(run, device_target="Ascend"))
    wanted = {
        "amp_level": (config.step.amp_level, "O0"),
        "device_num": (run.device_num, 1),
        "dataset_sink_mode": (run.dataset_sink_mode, False),
    }
    changes = [f"{name} {now} instead of {before}" for name, (before, now) in wanted.items() if before != now]
    if changes:
        logger.warning(
            "device_target auto: no Ascend here, so the CPU with %s; --device_target CPU keeps these settings",
            ", ".join(changes),
        )
    step = dataclasses.replace(config.step, amp_level="O0")
    run = dataclasses.replace(run, device_target="CPU", device_num=1, dataset_sink_mode=False)
    fitted = dataclasses.replace(config, step=step, run=run)
    check_combinations(fitted)
    return fitted
