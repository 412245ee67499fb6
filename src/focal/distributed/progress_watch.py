"""Ends a process whose training has stopped making progress."""

from __future__ import annotations

import threading
import time

from focal.distributed.collectives import give_up

FIRST_STEP_TIMEOUT = 3600.0  # seconds for the first batch, the compilation and the first step


class ProgressWatch:
    """Ends this process with a message when training makes no progress.

    It covers what `waiting` cannot: a rank that waits for another inside a compiled graph.

    Args:
        timeout: most seconds between two beats; 0: no watch. The first beat, which comes after the first batch has been
            read and the graph compiled, may take `FIRST_STEP_TIMEOUT` seconds, or `timeout` if that is longer.
        rank: rank of this process, for the message.
    """

    def __init__(self, timeout: float, rank: int) -> None:
        self._timeout = timeout
        self._rank = rank
        self._limit = max(timeout, FIRST_STEP_TIMEOUT)
        self._last = time.monotonic()
        self._stop = threading.Event()

    def start(self) -> None:
        """Start the watch."""
        self._last = time.monotonic()
        if self._timeout:
            threading.Thread(target=self._watch, name="progress-watch", daemon=True).start()

    def beat(self) -> None:
        """Note that progress was made."""
        self._last, self._limit = time.monotonic(), self._timeout

    def stop(self) -> None:
        """End the watch: no more beats are expected."""
        self._stop.set()

    def _watch(self) -> None:
        while not self._stop.wait(min(10.0, self._timeout / 10)):
            limit, silent = self._limit, time.monotonic() - self._last
            if silent > limit:
                name = "step_timeout" if limit == self._timeout else "before the first step"
                give_up(
                    f"rank {self._rank}: no step finished for {silent:.0f} s ({name} {limit:.0f}): this "
                    "rank or another is stuck; see the logs of all ranks"
                )
