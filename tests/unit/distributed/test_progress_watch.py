"""The watch that ends a process whose training has stopped making progress."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.unit.distributed.giving_up import SOURCES, errors_of_giving_up


def test_training_without_progress_ends_the_process() -> None:
    code = (
        "import time, logging; logging.basicConfig()\n"
        "from focal.distributed.progress_watch import ProgressWatch\n"
        "watch = ProgressWatch(1.0, rank=3)\n"
        "watch.start()\n"
        "time.sleep(1.5)  # compiling: the limit is another one\n"
        "for _ in range(6): watch.beat(); time.sleep(0.3)\n"
        "time.sleep(60)"
    )
    errors = errors_of_giving_up(code)
    assert re.search(r"rank 3: no step finished for \d+ s \(step_timeout 1\)", errors)


def test_a_first_step_that_never_comes_ends_the_process() -> None:
    code = (
        "import time, logging; logging.basicConfig()\n"
        "from focal.distributed import progress_watch\n"
        "progress_watch.FIRST_STEP_TIMEOUT = 2.0\n"
        "progress_watch.ProgressWatch(1.0, rank=3).start()\n"
        "time.sleep(60)"
    )
    errors = errors_of_giving_up(code)
    assert re.search(r"rank 3: no step finished for \d+ s \(before the first step 2\)", errors)


@pytest.mark.parametrize("timeout", [0.0, 0.3])
def test_a_watch_that_is_off_or_stopped_ends_nothing(timeout: float) -> None:
    code = (
        "import time\n"
        "from focal.distributed.progress_watch import ProgressWatch\n"
        f"watch = ProgressWatch({timeout}, rank=3); watch.start()\n"
        "watch.beat()\n"
        "if watch._timeout: watch.stop()\n"
        "time.sleep(0.8)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=SOURCES, timeout=30).returncode == 0
