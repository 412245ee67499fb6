"""What is said about framework versions."""

from __future__ import annotations

import logging
from pathlib import Path

import mindspore as ms
import pytest

from focal.distributed import versions
from focal.distributed.versions import (
    cann_remark,
    check_numpy,
    check_versions,
    expected_cann,
    find_cann,
    release_number,
    version_remark,
)
from focal.errors import UserError


@pytest.mark.parametrize(
    ("version", "number"), [("2.8.0", (2, 8, 0)), ("2.10.0rc1", (2, 10, 0)), ("2.7.0.post1", (2, 7, 0)), ("3", (3,))]
)
def test_versions_compare_as_numbers(version: str, number: tuple[int, ...]) -> None:
    assert release_number(version) == number


def test_2_10_is_later_than_2_9() -> None:
    assert release_number("2.10.0") > release_number("2.9.0")


@pytest.mark.parametrize("version", ["2.7.0", "2.7.2", "2.8.0", "2.9.0", "2.10.0"])
def test_tested_versions_need_no_remark(version: str) -> None:
    assert version_remark(version) == ""


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("2.6.0", "older than any version tested"),
        ("2.7.1", "has not been tested"),
        ("2.11.0", "has not been tested"),
    ],
)
def test_other_versions_get_a_remark(version: str, words: str) -> None:
    assert words in version_remark(version)


def test_numpy_2_is_refused() -> None:
    check_numpy("1.26.4")
    with pytest.raises(UserError, match=r"numpy 2\.1\.0 does not work .* pip install 'numpy>=1.26,<2'"):
        check_numpy("2.1.0")


def test_the_installed_versions_work() -> None:
    check_versions()


def put(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_cann_is_found_where_mindspore_reads_it(tmp_path: Path) -> None:
    file = put(tmp_path, "compiler/version.info", "Version=8.2.RC1.0.1\nversion_dir=8.2.RC1\n")
    put(tmp_path, "aarch64-linux/ascend_toolkit_install.info", "version=8.3\n")
    assert find_cann({"ASCEND_HOME_PATH": str(tmp_path)}) == ("8.2.RC1.0.1", file)


def test_cann_is_found_by_the_toolkits_own_record(tmp_path: Path) -> None:
    text = "package_name=Ascend-cann-toolkit\nversion=8.5.0\ninnerversion=V100R001\n"
    file = put(tmp_path, "x86_64-linux/ascend_toolkit_install.info", text)
    assert find_cann({"ASCEND_TOOLKIT_HOME": str(tmp_path)}) == ("8.5.0", file)


def test_cann_is_found_in_the_default_folders(tmp_path: Path) -> None:
    file = put(tmp_path, "cann/compiler/version.info", "Version=8.5.0\n")
    folders = (str(tmp_path / "ascend-toolkit/latest"), str(tmp_path / "cann"))
    assert find_cann({}, folders) == ("8.5.0", file)
    assert find_cann({"ASCEND_HOME_PATH": ""}, ()) is None


def test_the_installed_mindspore_names_the_cann_it_expects() -> None:
    expected = expected_cann()
    assert expected and all(release_number(version) >= (7,) for version in expected)
    if ms.__version__ == "2.8.0":  # the table in README.md
        assert expected == ["8.2", "8.3", "8.5"]


def test_an_unexpected_cann_gets_a_remark() -> None:
    expected = ["8.2", "8.3"]
    assert cann_remark("8.2.RC1", expected, "2.8.0") == "" == cann_remark("8.3", expected, "2.8.0")
    assert "CANN 8.0.0: MindSpore 2.8.0 expects 8.2 or 8.3" in cann_remark("8.0.0", expected, "2.8.0")
    assert cann_remark("8.0.0", [], "2.8.0") == ""  # a MindSpore that does not say


def test_on_an_ascend_the_log_names_the_cann(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "compiler/version.info", "Version=7.0.1\n")
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path))
    logging.getLogger("focal").propagate = True
    caplog.set_level(logging.INFO, logger="focal")
    check_versions()
    assert "CANN" not in caplog.text
    monkeypatch.setattr(ms, "get_context", lambda name: {"device_target": "Ascend"}[name])
    check_versions()
    assert "CANN 7.0.1 (" in caplog.text and "expects" in caplog.text
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path / "empty"))
    monkeypatch.setattr(versions, "find_cann", lambda environ: None)
    check_versions()
    assert "CANN: no version found" in caplog.text
