"""Short real trainings: a very small network on a few digits, every random part of the recipe switched on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.integration.digits import write_digits
from tests.integration.jobs import REPOSITORY

MINI = {
    "arch": "focalv2_mini", "num_classes": 4, "image_size": 32, "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2],
    "window_size": 4, "focal_stages": [0, 1], "focal_levels": [2, 2], "focal_windows": [3, 1], "expand_sizes": [0, 0],
    "focal_topK": 4, "focal_pool": "fc", "use_conv_embed": True, "drop_path_rate": 0.2, "drop_rate": 0.1,
    "attn_drop_rate": 0.1, "device_target": "CPU", "amp_level": "O0", "batch_size": 8, "eval_batch_size": 7,
    "num_parallel_workers": 2, "epochs": 3, "base_lr": 0.2, "warmup_length": 1, "ema_decay": 0.9, "ema_warmup": True,
    "scale_window": 5, "log_steps": 1, "keep_checkpoint_max": 2, "report": False,
}  # fmt: skip
UPDATES_PER_EPOCH = 6


def make_workplace(folder: Path, **overrides: Any) -> Path:
    """Digits under `folder`/data (50 train, 13 val) and a config `folder`/mini.yaml; returns the config's path."""
    if not (folder / "data").exists():
        write_digits(folder / "data", 50, 13)
    path = folder / "mini.yaml"
    path.write_text(yaml.safe_dump({**MINI, **overrides}))
    return path


def command(config: Path, output: Path, script: str = "train.py", **flags: Any) -> list[str]:
    """Command line of a job on the digits beside `config`."""
    flags = {"config": config, "train_url": output, "data_url": config.parent / "data", **flags}
    return [sys.executable, str(REPOSITORY / script), *(f"--{name}={value}" for name, value in flags.items())]


def records(output: Path, kind: str = "train") -> list[dict[str, Any]]:
    """Whole lines of metrics.jsonl of one kind."""
    path = output / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]  # what follows the last line break is still being written
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def losses(output: Path) -> list[float]:
    """Loss of every update, with all digits that were written."""
    return [record["loss"] for record in records(output)]
