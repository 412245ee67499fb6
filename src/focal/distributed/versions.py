"""What is known about the installed MindSpore, NumPy and CANN. Interfaces that differ are probed by signature."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Optional

from focal.errors import UserError

logger = logging.getLogger("focal")

TESTED = ("2.7.0", "2.7.2", "2.8.0", "2.9.0", "2.10.0")
# Where CANN is installed by default: up to 8.3, and from 8.5.
CANN_FOLDERS = ("/usr/local/Ascend/ascend-toolkit/latest", "/usr/local/Ascend/cann")
# In order. MindSpore reads the first; the others are for installations without it.
_CANN_VERSION_FILES = (
    "compiler/version.info",
    "*-linux/ascend_toolkit_install.info",
    "opp/version.info",
)


def check_versions() -> None:
    """Log what is known about this MindSpore; continue unless it cannot work.

    Raises:
        UserError: NumPy 2, which `check_numpy` refuses.
    """
    import mindspore
    import numpy

    logger.info("MindSpore %s, NumPy %s", mindspore.__version__, numpy.__version__)
    check_numpy(numpy.__version__)
    remark = version_remark(mindspore.__version__)
    if remark:
        logger.warning(remark)
    if mindspore.get_context("device_target") == "Ascend":
        _log_cann(mindspore.__version__)


def _log_cann(mindspore_version: str) -> None:
    found = find_cann(os.environ)
    if found is None:
        logger.warning("CANN: no version found in ASCEND_HOME_PATH or %s", " or ".join(CANN_FOLDERS))
        return
    version, file = found
    logger.info("CANN %s (%s)", version, file)
    remark = cann_remark(version, expected_cann(), mindspore_version)
    if remark:
        logger.warning(remark)


def find_cann(environ: Mapping[str, str], folders: Sequence[str] = CANN_FOLDERS) -> Optional[tuple[str, Path]]:
    """Version of the CANN toolkit and the file that tells it, or None.

    Args:
        environ: ASCEND_HOME_PATH and ASCEND_TOOLKIT_HOME, which CANN's set_env.sh sets, come first.
        folders: where to look next.
    """
    homes = [environ.get(name) for name in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")]
    for file in _version_files([home for home in [*homes, *folders] if home]):
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        match = re.search(r"^version=(\S+)", text, re.IGNORECASE | re.MULTILINE)
        if match:
            return match.group(1), file
    return None


def _version_files(homes: Sequence[str]) -> Iterator[Path]:
    for home in homes:
        for pattern in _CANN_VERSION_FILES:
            yield from sorted(Path(home).glob(pattern))


def expected_cann() -> Sequence[str]:
    """The versions of CANN, such as "8.5", that the installed MindSpore itself expects; empty if it does not say."""
    try:
        from mindspore.run_check._check_version import AscendEnvChecker

        return [str(version) for version in AscendEnvChecker(None).version]
    except Exception:  # not a public interface: whatever it may raise, only a remark in the log is lost
        return []


def cann_remark(version: str, expected: Sequence[str], mindspore_version: str) -> str:
    """What a user of this CANN should know; empty if MindSpore expects it, or says nothing about it."""
    if not expected or ".".join(version.split(".")[:2]) in expected:
        return ""
    return f"CANN {version}: MindSpore {mindspore_version} expects {' or '.join(expected)}; see Versions in README.md"


def check_numpy(version: str) -> None:
    """Raise `UserError` for NumPy 2 and later.

    The wheels of MindSpore 2.7.0 to 2.9.0 ask for NumPy 1. That of 2.10.0 accepts NumPy 2, but part of it was compiled
    for NumPy 1: a process's first operation in PyNative mode that takes a tuple of numbers fails with SystemError.
    """
    if release_number(version)[:1] >= (2,):
        raise UserError(f"numpy {version} does not work with MindSpore: pip install 'numpy>=1.26,<2'")


def version_remark(version: str) -> str:
    """What a user of this MindSpore should know; empty for a version the test suite runs on."""
    if version in TESTED:
        return ""
    if release_number(version) < (2, 7):
        return f"MindSpore {version} is older than any version tested ({', '.join(TESTED)}); interfaces may be missing"
    return f"MindSpore {version} has not been tested; tested are {', '.join(TESTED)}"


def release_number(version: str) -> tuple[int, ...]:
    """`2.10.0rc1` -> (2, 10, 0): the leading numbers, to be compared as numbers."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()
