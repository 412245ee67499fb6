"""Work that one process of each machine does while the others wait, such as copying a dataset.

The local rank 0 of each machine works in a thread. Meanwhile all ranks of the job tell each other every few seconds how
far they are, so that no collective call lasts as long as the work, a failure ends all of them with its reason, and a
rank that has died is noticed.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Callable, Optional

import numpy as np

from focal.distributed.collectives import COLLECTIVE_TIMEOUT, all_reduce_sum, waiting
from focal.distributed.device import Device
from focal.errors import UserError, one_line

logger = logging.getLogger("focal")

PULSE_SECONDS = 2.0  # between two status exchanges of the ranks
SILENCE_TIMEOUT = 120.0  # seconds after which a rank that takes no part in an exchange is taken for dead
WORK_TIMEOUT = 12 * 3600.0  # seconds; copying ImageNet as single files can take hours
REMIND_SECONDS = 60.0
_WORKING, _DONE, _FAILED = 0, 1, 2
_REASON_BYTES = 400


def once_per_machine(device: Device, what: str, work: Callable[[], None]) -> None:
    """Run `work` in local rank 0 of each machine and return in every rank once it is done everywhere.

    Every rank must call it.

    Args:
        what: a word for the work, for messages, e.g. "data".
        work: called in local rank 0 only, in a thread.

    Raises:
        Exception: whatever `work` raised in this process, but UserError for SystemExit.
        UserError: the work failed in another process, or is not done after `WORK_TIMEOUT`.
    """
    worker = _Worker(what, work)
    if device.local_rank == 0:
        worker.start()
    begin = reminded = time.monotonic()
    timeout = COLLECTIVE_TIMEOUT  # the ranks may not have come here at the same time
    while True:
        states = np.zeros(device.world_size, np.float32)
        states[device.rank] = worker.state_after(PULSE_SECONDS)
        states = _sum_over_ranks(what, states, timeout)
        timeout = SILENCE_TIMEOUT
        if (states == _FAILED).any():
            failed = int(np.argmax(states == _FAILED))
            mine = one_line(worker.error) if worker.error is not None and device.rank == failed else ""
            reason = _sum_of_texts(what, mine)
            raise worker.error or UserError(f"{what}: rank {failed} failed: {reason}; see its log")
        if (states == _DONE).all():
            return
        if time.monotonic() - reminded > REMIND_SECONDS:
            reminded = time.monotonic()
            logger.info("%s: not ready yet after %.0f min", what, (reminded - begin) / 60)


class _Worker(threading.Thread):
    """Runs `work` and remembers how it ended. One that is never started has nothing to do and counts as done."""

    def __init__(self, what: str, work: Callable[[], None]) -> None:
        super().__init__(name=what, daemon=True)
        self.error: Optional[BaseException] = None
        self._work = work
        self._deadline = time.monotonic() + WORK_TIMEOUT

    def run(self) -> None:
        try:
            self._work()
        except SystemExit as error:  # which would end the job, perhaps with exit code 0, without a word
            self.error = UserError(f"{self.name}: the program that copies ended with sys.exit({error})")
        except BaseException as error:
            self.error = error

    def state_after(self, seconds: float) -> int:
        """The state of the work once it has ended, or after `seconds`."""
        if self.ident is None:  # never started
            return _DONE
        self.join(seconds)
        if self.is_alive():
            if time.monotonic() < self._deadline:
                return _WORKING
            self.error = UserError(f"{self.name}: not ready after {WORK_TIMEOUT / 3600:.0f} h")
        return _DONE if self.error is None else _FAILED


def _sum_over_ranks(what: str, values: np.ndarray, timeout: float) -> np.ndarray:
    with waiting(f"an answer from the other ranks while {what} is prepared", timeout):
        return all_reduce_sum(values, timeout + 60)


def _sum_of_texts(what: str, text: str) -> str:
    """The one text that is not empty among those of all ranks, cut to `_REASON_BYTES`."""
    data = np.zeros(_REASON_BYTES, np.float32)
    encoded = text.encode()[:_REASON_BYTES]
    data[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    data = _sum_over_ranks(what, data, SILENCE_TIMEOUT)
    return data.astype(np.uint8).tobytes().rstrip(b"\0").decode(errors="replace")
