"""What is said about framework versions."""

from __future__ import annotations

import pytest

from focal.distributed.versions import check_numpy, check_versions, release_number, version_remark
from focal.errors import UserError


@pytest.mark.parametrize(
    ("version", "number"), [("2.8.0", (2, 8, 0)), ("2.10.0rc1", (2, 10, 0)), ("2.7.0.post1", (2, 7, 0)), ("3", (3,))]
)
def test_versions_compare_as_numbers(version: str, number: tuple[int, ...]) -> None:
    assert release_number(version) == number


def test_2_10_is_later_than_2_9() -> None:
    assert release_number("2.10.0") > release_number("2.9.0")


@pytest.mark.parametrize("version", ["2.7.0", "2.7.2", "2.8.0"])
def test_tested_versions_need_no_remark(version: str) -> None:
    assert version_remark(version) == ""


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("2.9.0", "convolutions on CPU"),
        ("2.10.0", "convolutions on CPU"),
        ("2.6.0", "older than any version tested"),
        ("2.7.1", "has not been tested"),
        ("2.11.0", "has not been tested"),
    ],
)
def test_other_versions_get_one(version: str, words: str) -> None:
    assert words in version_remark(version)


def test_numpy_2_is_refused() -> None:
    check_numpy("1.26.4")
    with pytest.raises(UserError, match=r"numpy 2\.1\.0 does not work .* pip install 'numpy>=1.26,<2'"):
        check_numpy("2.1.0")


def test_the_installed_versions_work() -> None:
    check_versions()
