"""Short pauses, an object store, and the ranks of a job as threads of one process."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

from focal.cloud import once, upload
from tests.unit.cloud.fake_moxing import FakeFile, make_moxing


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between attempts and status exchanges that a test can wait for."""
    monkeypatch.setattr(upload, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(once, "PULSE_SECONDS", 0.05)


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeFile:
    """An object store with two datasets and an archive, behind the stand-in."""
    for name in ("DATA_DOWNLOAD_METHOD", "LOCAL_DATASET_PATH", "LOCAL_TENSORBOARD_PATH"):
        monkeypatch.delenv(name, raising=False)
    module = make_moxing(tmp_path / "store")
    monkeypatch.setitem(sys.modules, "moxing", module)
    for dataset in ("digits", "flowers"):
        for split in ("train", "val"):
            for index in range(3):
                image = tmp_path / "store" / "bucket" / dataset / split / "cat" / f"{index}.jpg"
                image.parent.mkdir(parents=True, exist_ok=True)
                image.write_bytes(f"{dataset} {split} {index}".encode() * 10)
    return module.file


@pytest.fixture
def run_ranks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list]:
    """Runs a function per rank in threads that share their all-reduces; returns the results, or the errors."""

    def run(*works: Callable[[], Any]) -> list:
        barrier = threading.Barrier(len(works))
        values: dict[str, np.ndarray] = {}
        results: list[Any] = [None] * len(works)

        def all_reduce_sum(mine: np.ndarray, timeout: float) -> np.ndarray:
            assert mine.dtype == np.float32
            values[threading.current_thread().name] = mine
            barrier.wait(30)
            total = sum(values.values())
            barrier.wait(30)
            return np.asarray(total)

        def serve(rank: int) -> None:
            try:
                results[rank] = works[rank]()
            except BaseException as error:
                results[rank] = error

        monkeypatch.setattr(once, "all_reduce_sum", all_reduce_sum)
        threads = [threading.Thread(target=serve, args=(rank,), name=str(rank)) for rank in range(len(works))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return results

    return run
