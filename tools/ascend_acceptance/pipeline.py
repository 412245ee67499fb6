"""Task of the rung "data": pictures per second that the training pipeline prepares."""

from __future__ import annotations

from typing import Any

from focal.config import load_config
from focal.data import check_data
from focal.data.layout import find_layout
from tools.benchmark.data_pipeline import measure_pipeline


def measure(config: Any, data: str, batches: int) -> dict[str, Any]:
    """Time the whole pipeline; the number of classes is what the folder holds."""
    classes = len(find_layout(data, ("train",)).class_names)
    on_host = {"device_target": "CPU", "amp_level": "O0", "dataset_sink_mode": False, "jit_level": "auto"}
    settings = load_config(config, {**on_host, "data_url": data, "num_classes": classes})
    layout = check_data(settings, data, splits=("train",))
    rate = measure_pipeline(settings, layout, batches * settings.data.batch_size)
    return {"images_per_second": rate, "workers": settings.data.num_parallel_workers, "classes": classes}
