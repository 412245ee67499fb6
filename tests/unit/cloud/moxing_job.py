"""A job whose data and results lie in the stand-in's object store, and what its folders hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from focal.cloud.storage import open_storage
from focal.config import load_config
from focal.distributed.device import Device


def storage(tmp_path: Path, unknown: tuple = (), device: Device = Device(), **keys: Any) -> Any:  # noqa: B008
    """The storage of a job with these keys and with `unknown` flags of the platform."""
    keys = {"data_url": "obs://bucket/digits", "train_url": "obs://bucket/out/job1", **keys}
    config = load_config({"device_target": "CPU", "run_openi": True, "cache_dir": str(tmp_path / "cache"), **keys})
    return open_storage(config, device, unknown)


def server(tmp_path: Path, rank: int, **keys: Any) -> Any:
    """The storage of one of two servers with a rank each."""
    return storage(tmp_path / f"server{rank}", device=Device(rank, 2, local_rank=0, local_size=1), **keys)


def names(folder: Path) -> set[str]:
    """Relative paths of the files in `folder`."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
