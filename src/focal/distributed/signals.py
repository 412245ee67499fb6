"""Ctrl-C and SIGTERM as a request to stop after the current step.

MindSpore puts a handler of its own below Python's whenever a graph runs, which answers Ctrl-C by ending the process on
the spot. So here SIGINT is blocked and a thread waits for it instead: no handler ever sees it. To work, this must be
entered before MindSpore starts its threads, since they inherit the mask.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any

logger = logging.getLogger("focal")

_POLL_SECONDS = 0.2


class StopSignals:
    """Within `with`, notes the first signal in `received` (its number, 0 before); a second one ends the process.

    Only the main thread of a process can set this up; elsewhere it does nothing.

    Args:
        at_once: the first signal already ends the process.
    """

    def __init__(self, at_once: bool = False) -> None:
        self.received = 0
        self.at_once = at_once
        self._entered = False
        self._old_mask: set[int] = set()
        self._old_handler: Any = None
        self._waiter = threading.Thread(target=self._wait, name="stop-signals", daemon=True)

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            self._old_handler = signal.signal(signal.SIGTERM, self._on_sigterm)
            self._entered = True
            self._waiter.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._entered:
            self._entered = False
            self._waiter.join()
            signal.signal(signal.SIGTERM, self._old_handler)
            signal.pthread_sigmask(signal.SIG_SETMASK, self._old_mask)

    def guard(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The items of `batches`, with our handler of SIGTERM in place: a data pipeline may have replaced it."""
        for item in batches:
            if self._entered:
                signal.signal(signal.SIGTERM, self._on_sigterm)
            yield item

    def _wait(self) -> None:
        while self._entered:
            if signal.sigtimedwait({signal.SIGINT}, _POLL_SECONDS) is not None:
                self._receive(signal.SIGINT)

    def _on_sigterm(self, number: int, _frame: object) -> None:
        self._receive(number)

    def _receive(self, number: int) -> None:
        name = signal.Signals(number).name
        if self.received or self.at_once:
            sys.stderr.write(f"{name}: stopped at once\n")
            sys.stderr.flush()
            os._exit(128 + number)  # the main thread may be inside a graph, where no exception reaches it
        self.received = int(number)
        logger.warning("%s: stopping after this step; repeat it to stop at once", name)
