"""Retries and the background uploader."""

from __future__ import annotations

import threading
import time
from typing import Callable

import pytest

from focal.cloud.upload import Uploader, with_retries


def failing(times: int) -> tuple:
    """A function that fails so many times first, and the list of its calls."""
    calls: list[int] = []

    def work() -> None:
        calls.append(1)
        if len(calls) <= times:
            raise OSError(f"no route, call {len(calls)}")

    return work, calls


def test_work_that_succeeds_is_called_once() -> None:
    work, calls = failing(0)
    with_retries("x", work)
    assert len(calls) == 1


def test_pauses_double_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("focal.cloud.upload.FIRST_PAUSE", 2.0)
    work, calls = failing(8)
    pauses: list[float] = []
    with_retries("x", work, attempts=9, pause=pauses.append)
    assert len(calls) == 9
    assert pauses == [2, 4, 8, 16, 32, 60, 60, 60]


def test_giving_up_raises_the_last_error(caplog: pytest.LogCaptureFixture) -> None:
    work, calls = failing(99)
    with pytest.raises(OSError, match="call 3"):
        with_retries("sending", work, attempts=3, pause=lambda seconds: None)
    assert len(calls) == 3
    assert "sending: attempt 1 failed (no route, call 1)" in caplog.text
    assert "sending: failed 3 times, giving up: no route, call 3" in caplog.text


def test_requests_return_at_once_and_close_waits() -> None:
    release, started, sent = threading.Event(), threading.Event(), []

    def send() -> None:
        started.set()
        release.wait(10)
        sent.append(1)

    uploader = Uploader("x", send)
    uploader.request()
    assert started.wait(5) and sent == []  # it works while we continue
    for _ in range(10):
        uploader.request()
    release.set()
    assert uploader.close() is None
    assert 2 <= len(sent) <= 3  # ten requests while busy are one round more, and close's own


def test_close_always_sends_once_more() -> None:
    sent: list[int] = []
    uploader = Uploader("x", lambda: sent.append(1))
    assert uploader.close() is None
    assert sent == [1]


def test_close_returns_the_error_of_the_last_round() -> None:
    work, calls = failing(99)
    uploader = Uploader("x", work)
    error = uploader.close()
    assert isinstance(error, OSError) and len(calls) == 5


def test_a_send_that_exits_is_an_error_of_the_last_round() -> None:
    """SystemExit ends a thread in silence, and nothing would have been sent."""

    def send() -> None:
        calls.append(1)
        raise SystemExit(0)

    calls: list[int] = []
    uploader = Uploader("x", send)
    uploader.request()
    deadline = time.monotonic() + 10
    while not calls and time.monotonic() < deadline:
        time.sleep(0.01)
    assert isinstance(uploader.close(), SystemExit) and len(calls) == 2  # the thread has lived on


def test_an_early_failure_is_forgotten_once_it_is_sent() -> None:
    work, calls = failing(7)
    uploader = Uploader("x", work)
    uploader.request()
    deadline = time.monotonic() + 10
    while len(calls) < 5 and time.monotonic() < deadline:  # the first round gives up
        time.sleep(0.01)
    assert uploader.close() is None
    assert len(calls) == 8


def test_a_close_while_the_thread_checks_for_it_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing right after the thread has taken a request, and before it asks whether this is the end."""
    uploader = Uploader("x", lambda: None)
    asked, closed = threading.Event(), threading.Event()
    clear, is_set = uploader._requested.clear, uploader._closing.is_set

    def pause_first(then: Callable[[], bool]) -> bool:
        result = then()
        if not asked.is_set():
            asked.set()
            closed.wait(10)
        return bool(result)

    monkeypatch.setattr(uploader._requested, "clear", lambda: pause_first(clear))
    monkeypatch.setattr(uploader._closing, "is_set", lambda: pause_first(is_set))
    uploader.request()
    assert asked.wait(10)
    monkeypatch.setattr(uploader._closing, "is_set", is_set)
    threading.Timer(0.2, closed.set).start()
    assert uploader.close() is None
    assert not uploader._thread.is_alive()


def test_a_last_round_that_never_ends_does_not_hold_the_job_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("focal.cloud.upload.LAST_ROUND", 0.1)
    network = threading.Event()
    uploader = Uploader("sending", lambda: network.wait(60) and None)
    assert "sending: not finished" in str(uploader.close())
    network.set()
