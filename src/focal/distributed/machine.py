"""What a job runs on, in a form that people and reports can read."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from pathlib import Path
from typing import Any, Optional

from focal.distributed.chip import ascend_chip
from focal.distributed.device import Device
from focal.distributed.versions import find_cann


def describe_machine(device: Device) -> dict[str, Any]:
    """Devices, processor, memory and versions of this process's machine; what is not known is None."""
    import mindspore
    import numpy

    cann = find_cann(os.environ) if device.target == "Ascend" else None
    return {
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "device_target": device.target,
        "chip": ascend_chip() if device.target == "Ascend" else None,
        "devices": device.world_size,
        "devices_per_machine": device.local_size,
        "processor": _processor_name(),
        "processors": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "mindspore": mindspore.__version__,
        "numpy": numpy.__version__,
        "cann": cann[0] if cann is not None else None,
    }


def _processor_name() -> Optional[str]:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or None


def _memory_gib() -> Optional[float]:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # AttributeError: Windows has no sysconf
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    return None
