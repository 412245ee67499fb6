"""Archives: everything inside arrives, nothing gets out."""

from __future__ import annotations

import gzip
import io
import os
import random
import tarfile
import zipfile
from pathlib import Path
from typing import Callable

import pytest

from focal.cloud.archive import unpack_archive
from focal.errors import UserError


def _tar(path: Path, fill: Callable[[tarfile.TarFile], None], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:
        fill(tar)
    return path


def _entry(name: str, data: bytes = b"x", **fields: object) -> Callable[[tarfile.TarFile], None]:
    info = tarfile.TarInfo(name)
    info.size = len(data) if fields.get("type", tarfile.REGTYPE) == tarfile.REGTYPE else 0
    for field, value in fields.items():
        setattr(info, field, value)
    return lambda tar: tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("suffix", ("tar", "tar.gz", "zip"))
def test_every_file_of_an_archive_arrives(image_folder: Path, tmp_path: Path, suffix: str) -> None:
    archive = tmp_path / f"imagenet.{suffix}"
    if suffix == "zip":
        with zipfile.ZipFile(archive, "w") as zipped:
            for path in sorted(image_folder.rglob("*")):
                zipped.write(path, path.relative_to(image_folder))
    else:
        _tar(archive, lambda tar: tar.add(image_folder, "."), "w:gz" if suffix == "tar.gz" else "w")
    unpack_archive(archive, tmp_path / "out")
    found = {path.relative_to(tmp_path / "out"): path.read_bytes() for path in (tmp_path / "out").rglob("*.jpg")}
    expected = {path.relative_to(image_folder): path.read_bytes() for path in image_folder.rglob("*.jpg")}
    assert len(expected) == 35 and found == expected


@pytest.mark.parametrize("name", ("../evil", "a/../../evil", "/evil", "a/..", "..\\evil", "C:\\evil", "\\evil"))
@pytest.mark.parametrize("kind", ("tar", "zip"))
def test_an_entry_that_leaves_the_folder_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    archive = tmp_path / f"bad.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as zipped:
            zipped.writestr(name, "x")
    else:
        _tar(archive, _entry(name), "w")
    target = tmp_path / "deep" / "out"
    with pytest.raises(UserError, match="leaves the folder"):
        unpack_archive(archive, target)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [archive.name]


@pytest.mark.parametrize("kind", (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE))
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    archive = _tar(tmp_path / "bad.tar.gz", _entry("a", b"", type=kind, linkname="../../etc"))
    with pytest.raises(UserError, match="only plain files"):
        unpack_archive(archive, tmp_path / "out")
    assert not os.path.lexists(tmp_path / "out" / "a")


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as zipped:
        zipped.writestr(info, "/etc/passwd")
    with pytest.raises(UserError, match="link"):
        unpack_archive(tmp_path / "bad.zip", tmp_path / "out")


# ---- bombs


def _zeros(path: Path, size: int, names: int = 1) -> Path:
    """An archive with `names` files of `size` zeros each, compressed about a thousand times."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
            for index in range(names):
                zipped.writestr(f"{index}.png", b"\0" * size)
        return path
    return _tar(path, lambda tar: [_entry(f"{index}.png", b"\0" * size)(tar) for index in range(names)])


@pytest.fixture
def small_allowance(monkeypatch: pytest.MonkeyPatch) -> None:
    """One megabyte instead of a hundred, so that a bomb need not be large."""
    monkeypatch.setattr("focal.cloud.archive.ALWAYS_ALLOWED", 1_000_000)


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_a_bomb_of_zeros_is_refused(tmp_path: Path, kind: str, small_allowance: None) -> None:
    archive = _zeros(tmp_path / f"bomb.{kind}", size=700_000, names=3)
    message = r"holds too many bytes for its \d+; refused, as it may be made to fill a disk; if you trust it, unpack it"
    with pytest.raises(UserError, match=f"{message} yourself and give the folder as data_url$"):
        unpack_archive(archive, tmp_path / "out")
    assert sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file()) <= 1_000_000
    unpack_archive(_zeros(tmp_path / f"small.{kind}", size=700_000), tmp_path / "small")
    assert (tmp_path / "small" / "0.png").stat().st_size == 700_000


def test_zeros_after_the_end_of_a_tar_are_not_read_for_ever(tmp_path: Path, small_allowance: None) -> None:
    whole = _tar(tmp_path / "a.tar", _three_files, "w").read_bytes()
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(whole + b"\0" * 3_000_000))
    with pytest.raises(UserError, match="too many bytes"):
        unpack_archive(tmp_path / "a.tar.gz", tmp_path / "out")


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_too_many_entries_are_refused(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("focal.cloud.archive.MOST_ENTRIES", 5)
    unpack_archive(_zeros(tmp_path / f"five.{kind}", size=0, names=5), tmp_path / "five")
    with pytest.raises(UserError, match="holds too many entries"):
        unpack_archive(_zeros(tmp_path / f"six.{kind}", size=0, names=6), tmp_path / "six")


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_header_that_would_fill_the_memory_is_refused(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("long")
    info.type, info.size = kind, 8 << 30
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 10_240)
    with pytest.raises(UserError, match="a header in it claims 8589934592 bytes"):
        unpack_archive(tmp_path / "a.tar", tmp_path / "out")


def test_a_sparse_file_is_refused(tmp_path: Path) -> None:
    """A few bytes that stand for a terabyte of zeros."""
    fields = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 40)}
    fields["GNU.sparse.name"] = "huge.png"
    info = tarfile.TarInfo("GNUSparseFile.0/huge.png")
    info.pax_headers, info.size = fields, 512
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(b"0\n".ljust(512, b"\0")))
    with pytest.raises(UserError, match="sparse file"):
        unpack_archive(tmp_path / "a.tar", tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.png"))


def _three_files(tar: tarfile.TarFile) -> None:
    for name, size in (("train/a.jpg", 700), ("train/b.jpg", 512), ("val/c.jpg", 0)):
        _entry(name, b"x" * size)(tar)


# Of the three files: header, two blocks, header, one block, header, then the blocks of zeros that end a tar.
@pytest.mark.parametrize("cut", (0, 100, 512, 1000, 1536, 1537, 2048, 2560, 3071))
@pytest.mark.parametrize("compressed", (False, True))
def test_an_archive_that_is_cut_short_is_an_error(tmp_path: Path, cut: int, compressed: bool) -> None:
    whole = _tar(tmp_path / "whole.tar", _three_files, "w").read_bytes()
    archive = tmp_path / "cut.tar.gz"
    archive.write_bytes(gzip.compress(whole[:cut]) if compressed else whole[:cut])
    with pytest.raises(UserError, match="download complete") as caught:
        unpack_archive(archive, tmp_path / "out")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fraction", (0.0, 0.25, 0.5, 0.75))
def test_a_compressed_archive_that_is_cut_short_is_an_error(tmp_path: Path, fraction: float) -> None:
    def fill(tar: tarfile.TarFile) -> None:
        for index in range(20):
            _entry(f"train/{index}.jpg", random.Random(index).randbytes(700))(tar)

    archive = _tar(tmp_path / "a.tar.gz", fill)
    data = archive.read_bytes()
    archive.write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(UserError, match="download complete"):
        unpack_archive(archive, tmp_path / "out")


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    archive = _tar(tmp_path / "a.tar", _three_files, "w")
    data = bytearray(archive.read_bytes())
    data[1536] ^= 1  # The name in the second header: its checksum is wrong now.
    archive.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        unpack_archive(archive, tmp_path / "out")


def test_a_changed_bit_is_noticed(tmp_path: Path) -> None:
    """In the middle of data that do not compress, where only the checksum behind them can tell."""
    data = random.Random(0).randbytes(20_000)
    whole = _tar(tmp_path / "a.tar", _entry("train/a.jpg", data), "w").read_bytes()
    compressed = bytearray(gzip.compress(whole))
    compressed[len(compressed) // 2] ^= 1
    (tmp_path / "b.tar.gz").write_bytes(compressed)
    with pytest.raises(UserError, match="cannot unpack"):
        unpack_archive(tmp_path / "b.tar.gz", tmp_path / "out")


def test_a_gzip_file_of_several_members_is_read_to_its_end(tmp_path: Path) -> None:
    whole = _tar(tmp_path / "a.tar", _three_files, "w").read_bytes()
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(whole[:1000]) + gzip.compress(whole[1000:]))
    unpack_archive(tmp_path / "a.tar.gz", tmp_path / "out")
    assert len(list((tmp_path / "out").rglob("*.jpg"))) == 3


def test_joined_archives_are_refused(tmp_path: Path) -> None:
    """tarfile, as tar, stops at the end of the first and would lose the second without a word."""
    whole = _tar(tmp_path / "a.tar.gz", _three_files).read_bytes()
    (tmp_path / "b.tar.gz").write_bytes(whole + whole)
    with pytest.raises(UserError, match="data after its end"):
        unpack_archive(tmp_path / "b.tar.gz", tmp_path / "out")


def test_a_tar_that_begins_like_a_zip_is_read_as_a_tar(tmp_path: Path) -> None:
    unpack_archive(_tar(tmp_path / "a.tar", _entry("PK.jpg"), "w"), tmp_path / "out")
    assert (tmp_path / "out" / "PK.jpg").read_bytes() == b"x"


def test_a_tar_ends_at_its_first_block_of_zeros(tmp_path: Path) -> None:
    archive = _tar(tmp_path / "a.tar", _three_files, "w")
    archive.write_bytes(archive.read_bytes()[: 3072 + 512])
    unpack_archive(archive, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.jpg")) == ["a.jpg", "b.jpg", "c.jpg"]


def test_a_missing_archive_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot unpack"):
        unpack_archive(tmp_path / "none.tar.gz", tmp_path / "out")
