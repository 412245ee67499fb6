"""The steps of an epoch as a bar on the terminal."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any, Optional

logger = logging.getLogger("focal")


class ProgressBar:
    """A bar that grows with every step of an epoch; log lines appear above it.

    It does nothing where the output goes to a file or to a cloud's log, which get lines only, or without tqdm.

    Args:
        wanted: whether this process may show one; rank 0 alone does.
    """

    def __init__(self, wanted: bool) -> None:
        self._tqdm = _tqdm_of_terminal() if wanted else None
        self._bar: Any = None
        self._lines_above = contextlib.ExitStack()

    def start(self, title: str, steps: int, done: int) -> None:
        """Show a new bar.

        Args:
            title: of the epoch.
            steps: in it.
            done: how many of them had been done before.
        """
        self.close()
        if self._tqdm is None:
            return
        from tqdm.contrib.logging import logging_redirect_tqdm

        self._bar = self._tqdm(
            total=steps, initial=done, desc=title, leave=False, dynamic_ncols=True, file=sys.stderr,
            bar_format="{desc} {percentage:3.0f} %|{bar:20}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
        )  # fmt: skip
        self._lines_above.enter_context(logging_redirect_tqdm([logger], self._tqdm))

    @contextlib.contextmanager
    def waiting(self, title: str) -> Iterator[None]:
        """Show `title` and the time since then, which goes on every second, while the block runs."""
        if self._tqdm is None:
            yield
            return
        from tqdm.contrib.logging import logging_redirect_tqdm

        form = "{desc} {elapsed}"
        over = threading.Event()
        bar = self._tqdm(desc=title, leave=False, dynamic_ncols=True, file=sys.stderr, bar_format=form)

        def refresh() -> None:
            while not over.wait(1.0):
                bar.refresh()

        clock = threading.Thread(target=refresh, name="elapsed time", daemon=True)
        clock.start()
        try:
            with logging_redirect_tqdm([logger], self._tqdm):
                yield
        finally:
            over.set()
            clock.join()
            bar.close()

    def advance(self) -> None:
        """One step is done."""
        if self._bar is not None:
            self._bar.update()

    def show(self, figures: str) -> None:
        """Show the latest figures behind the bar."""
        if self._bar is not None:
            self._bar.set_postfix_str(figures)

    def close(self) -> None:
        """Remove the bar; log lines go straight to the terminal again."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._lines_above.close()


def _tqdm_of_terminal() -> Optional[Any]:
    """The class tqdm if it is installed and both outputs go to a terminal; else None."""
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm
