"""What is known about the installed MindSpore and NumPy. Differing interfaces are probed by signature."""

from __future__ import annotations

import logging
import re

from focal.errors import UserError

logger = logging.getLogger("focal")

TESTED = ("2.7.0", "2.7.2", "2.8.0")


def check_versions() -> None:
    """Log what is known about this MindSpore; go on unless it cannot work.

    Raises:
        UserError: NumPy 2, with which MindSpore's `asnumpy` and `Tensor.T` fail.
    """
    import mindspore
    import numpy

    logger.info("MindSpore %s, NumPy %s", mindspore.__version__, numpy.__version__)
    check_numpy(numpy.__version__)
    remark = version_remark(mindspore.__version__)
    if remark:
        logger.warning(remark)


def check_numpy(version: str) -> None:
    """Raise `UserError` for NumPy 2 and later."""
    if release_number(version)[:1] >= (2,):
        raise UserError(f"numpy {version} does not work with MindSpore: pip install 'numpy>=1.26,<2'")


def version_remark(version: str) -> str:
    """What a user of this MindSpore should know; empty for a version the test suite runs on."""
    if version in TESTED:
        return ""
    number = release_number(version)
    if number[:2] in ((2, 9), (2, 10)):
        return f"MindSpore {version}: convolutions on CPU take about 100 times as long as in 2.8.0; prefer that"
    if number < (2, 7):
        return f"MindSpore {version} is older than any version tested ({', '.join(TESTED)}); interfaces may be missing"
    return f"MindSpore {version} has not been tested; tested are {', '.join(TESTED)}"


def release_number(version: str) -> tuple[int, ...]:
    """`2.10.0rc1` -> (2, 10, 0): the leading numbers, to be compared as numbers."""
    return tuple(int(part) for part in re.match(r"\d+(\.\d+)*", version).group().split("."))
