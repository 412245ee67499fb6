"""Keep retries short."""

from __future__ import annotations

import pytest

from focal.cloud import once, upload


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between attempts that a test can wait for."""
    monkeypatch.setattr(upload, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(once, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(once, "POLL_SECONDS", 0.02)
