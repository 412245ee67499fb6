"""Sending results away in the background: repeated with growing pauses, and never in the way of training."""

from __future__ import annotations

import logging
import threading
import time
from typing import Callable, Optional

logger = logging.getLogger("focal")

ATTEMPTS = 5
FIRST_PAUSE = 2.0  # seconds before the second attempt; doubles with each
LONGEST_PAUSE = 60.0
LAST_ROUND = 3600.0  # seconds that the end of a job waits for the last sending


def with_retries(
    what: str, work: Callable[[], None], attempts: int = ATTEMPTS, pause: Callable[[float], object] = time.sleep
) -> None:
    """Call `work` until it does not raise, at most `attempts` times, pausing 2, 4, 8, ... seconds in between.

    Raises:
        Exception: that of the last attempt.
    """
    seconds = FIRST_PAUSE
    for attempt in range(1, attempts + 1):
        try:
            return work()
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            if attempt == attempts:
                logger.error("%s: failed %d times, giving up: %s", what, attempts, reason)
                raise
            logger.warning("%s: attempt %d failed (%s); again in %.0f s", what, attempt, reason, seconds)
        pause(seconds)
        seconds = min(2 * seconds, LONGEST_PAUSE)


class Uploader:
    """A thread that sends results when asked. Requests that come while it is busy are answered by one more round."""

    def __init__(self, what: str, send: Callable[[], None]) -> None:
        """`send` takes everything not yet sent; it may raise, and is then tried again."""
        self._what = what
        self._send = send
        self._wanted = threading.Event()
        self._closing = threading.Event()
        self._error: Optional[Exception] = None
        self._thread = threading.Thread(target=self._serve, name="uploader", daemon=True)
        self._thread.start()

    def request(self) -> None:
        """Have the results so far sent soon; returns at once."""
        self._wanted.set()

    def close(self) -> Optional[Exception]:
        """Send once more, wait for it, and end the thread; returns the error if that last sending failed.

        It is given `LAST_ROUND` seconds.
        """
        if self._thread.is_alive():
            self._closing.set()
            self._wanted.set()
            self._thread.join(LAST_ROUND)
            if self._thread.is_alive():
                return TimeoutError(f"{self._what}: not finished after {LAST_ROUND:.0f} s")
        return self._error

    def _serve(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()  # before `closing` is read: a request to close that comes in between is kept
            closing = self._closing.is_set()
            try:
                # While training, `close` cuts a pause short: the last round follows at once.
                with_retries(self._what, self._send, pause=time.sleep if closing else self._closing.wait)
                self._error = None
            except Exception as error:
                self._error = error
            if closing:
                return
