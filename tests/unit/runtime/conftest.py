"""Keep the logger `focal` as other tests expect it, and retries short."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from src.runtime import once, upload


@pytest.fixture(autouse=True)
def restored_logger() -> Iterator[None]:
    """Handlers, level and propagation of `focal` as they were."""
    logger = logging.getLogger("focal")
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    logger.propagate = True
    logger.setLevel(logging.INFO)
    yield
    for handler in set(logger.handlers) - set(handlers):
        handler.close()
    logger.handlers, logger.level, logger.propagate = handlers, level, propagate


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between attempts that a test can wait for."""
    monkeypatch.setattr(upload, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(once, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(once, "POLL_SECONDS", 0.02)
