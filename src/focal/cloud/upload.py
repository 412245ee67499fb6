"""Sends results in the background, with growing pauses between attempts, so that training does not wait."""

from __future__ import annotations

import logging
import threading
import time
from typing import Callable, Optional

from focal.errors import one_line

logger = logging.getLogger("focal")

ATTEMPTS = 5
FIRST_PAUSE = 2.0  # seconds before the second attempt; doubles with each
LONGEST_PAUSE = 60.0
LAST_ROUND = 3600.0  # seconds that the end of a job waits for the last results to be sent


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
            if attempt == attempts:
                logger.error("%s: failed %d times, giving up: %s", what, attempts, one_line(error))
                raise
            logger.warning("%s: attempt %d failed (%s); again in %.0f s", what, attempt, one_line(error), seconds)
        pause(seconds)
        seconds = min(2 * seconds, LONGEST_PAUSE)


class Uploader:
    """A thread that sends results on request. Requests that come while it is busy lead to one more round.

    Args:
        what: what it does, for messages.
        send: sends everything that is new; if it raises, it is called again.
    """

    def __init__(self, what: str, send: Callable[[], None]) -> None:
        self._what = what
        self._send = send
        self._requested = threading.Event()
        self._closing = threading.Event()
        self._error: Optional[BaseException] = None
        self._thread = threading.Thread(target=self._serve, name="uploader", daemon=True)
        self._thread.start()

    def request(self) -> None:
        """Have the results so far sent soon; returns at once."""
        self._requested.set()

    def close(self) -> Optional[BaseException]:
        """Send once more, end the thread, and return the error if that last round failed or took over `LAST_ROUND`."""
        self._closing.set()
        self._requested.set()
        self._thread.join(LAST_ROUND)
        if self._thread.is_alive():
            return TimeoutError(f"{self._what}: not finished after {LAST_ROUND:.0f} s")
        return self._error

    def _serve(self) -> None:
        closing = False
        while not closing:
            self._requested.wait()
            self._requested.clear()  # before `closing` is read, so that no request to close is lost in between
            closing = self._closing.is_set()
            try:
                # During training `close` cuts a pause short, because the last round follows at once.
                with_retries(self._what, self._send, pause=time.sleep if closing else self._closing.wait)
                self._error = None
            except BaseException as error:  # SystemExit, say, would end this thread in silence
                self._error = error
