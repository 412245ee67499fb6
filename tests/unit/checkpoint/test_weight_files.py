"""Weight files of other programs: bfloat16, sizes that are not true, files that would fill the memory."""

from __future__ import annotations

import json
import resource
import struct
import zipfile

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from focal.checkpoint import weight_files
from focal.checkpoint.weight_files import describe_file, read_official_weights, write_official_weights
from focal.errors import UserError


def safetensors_file(path, header, data):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def entry(dtype, shape, end, begin=0):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_a_safetensors_file_of_bfloat16_is_read_as_float32(tmp_path):
    path = tmp_path / "x.safetensors"
    values = np.array([1.0, -2.5, 3.140625, 1e30, 0.0, -0.0], np.float32)  # 1e30 is rounded
    bits = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    header = {"a": entry("BF16", [2, 3], 12), "b": entry("F16", [2], 16, 12), "__metadata__": {"format": "pt"}}
    safetensors_file(path, header, bits + np.array([0.5, 2], "<f2").tobytes())
    state = read_official_weights(str(path))
    assert state.keys() == {"a", "b"} and state["a"].dtype == np.float32
    np.testing.assert_allclose(state["a"], values.reshape(2, 3), rtol=2**-7)
    assert state["a"][0].tolist() == [1.0, -2.5, 3.140625] and state["b"].tolist() == [0.5, 2]


def test_a_safetensors_file_is_read_as_its_own_package_does(tmp_path):
    path = tmp_path / "x.safetensors"
    random = np.random.default_rng(0)
    state = {kind: (10 * random.standard_normal((2, 3))).astype(kind) for kind in ("f8", "f4", "f2", "i8", "u1", "?")}
    write_official_weights(str(path), state)
    expected, found = safetensors_numpy.load_file(path), read_official_weights(str(path))
    assert found.keys() == expected.keys() == state.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize(
    "header",
    [{"a": entry("F32", [1 << 40], 8)}, {"a": entry("F32", [2], 1 << 42)}, {"a": entry("F32", [3], 8)},
     {"a": entry("F32", [2], 16, 8)}, {"a": entry("F32", [-2], 8)}, {"a": entry("F32", [1], 4)}],
    ids=["shape", "offset", "size", "behind", "negative", "rest"],
)  # fmt: skip
def test_a_safetensors_file_that_lies_about_sizes_is_refused(header, tmp_path):
    safetensors_file(tmp_path / "x.safetensors", header, bytes(8))
    with pytest.raises(UserError, match="not a whole safetensors file") as error:
        read_official_weights(str(tmp_path / "x.safetensors"))
    assert "\n" not in str(error.value)


def test_a_header_of_a_terabyte_and_unknown_numbers_are_refused(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    with pytest.raises(UserError, match="not a whole safetensors file"):
        read_official_weights(str(tmp_path / "x.safetensors"))
    safetensors_file(tmp_path / "x.safetensors", {"a": entry("F8_E4M3", [8], 8)}, bytes(8))
    with pytest.raises(UserError, match="a holds numbers of type F8_E4M3"):
        read_official_weights(str(tmp_path / "x.safetensors"))


def npy(shape, data=b"", descr="<f4"):
    """A .npy file whose header claims a shape."""
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text + b"\n" + data


def refused(path):
    """The error for a file, which must not have taken memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="not a whole npz file of plain arrays") as error:
        read_official_weights(str(path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("shape", [(1 << 40,), (1 << 20, 1 << 20), (3,), ()])
def test_an_npz_file_that_claims_another_array_is_refused(shape, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", npy(shape, bytes(16)))
    assert "a.npy claims" in refused(tmp_path / "x.npz")


def test_an_npz_file_that_unpacks_to_gigabytes_is_refused(tmp_path, monkeypatch):
    """A file of 65 kB that holds 64 MB of zeros, against a limit of 16 MB; the real one is 4 GB."""
    assert weight_files._MOST_BYTES == 4 << 30
    monkeypatch.setattr(weight_files, "_MOST_BYTES", 16 << 20)
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", npy((16 << 20,), bytes(64 << 20)))
    assert (tmp_path / "x.npz").stat().st_size < 100_000
    assert "it unpacks to 67,108," in refused(tmp_path / "x.npz")


def test_an_npz_file_that_hides_its_size_is_refused(tmp_path):
    """The list of contents says 80 bytes; what is packed is more."""
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", npy((1 << 20,), bytes(4 << 20)))
    content = bytearray(path.read_bytes())
    listed = content.rindex(b"PK\x01\x02") + 24  # the unpacked size in the central directory
    content[listed : listed + 4] = struct.pack("<I", 80)
    path.write_bytes(bytes(content))
    refused(path)


def test_every_damage_of_a_compressed_npz_is_one_error(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, a=np.arange(3000, dtype=np.float32), b=np.zeros((3, 4), np.float32))
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for position in rng.integers(0, len(content), 200).tolist():
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :])
        try:
            read_official_weights(str(path))
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 100  # names and dates of entries carry no checksum, the data do
    np.save(tmp_path / "y.npy", np.zeros(3))
    (tmp_path / "y.npy").rename(tmp_path / "y.npz")
    with pytest.raises(UserError, match="not a whole npz file"):
        read_official_weights(str(tmp_path / "y.npz"))


def test_a_file_is_described_by_its_size_and_checksum(tmp_path):
    (tmp_path / "x.pth").write_bytes(b"abc" * 411522)
    assert describe_file(str(tmp_path / "x.pth")).startswith(f"{tmp_path / 'x.pth'}: 1,234,566 bytes, sha256 ")
    (tmp_path / "x.pth").write_bytes(b"abc")  # whose checksum is the standard's example (FIPS 180-2, B.1)
    assert describe_file(str(tmp_path / "x.pth")) == (
        f"{tmp_path / 'x.pth'}: 3 bytes, sha256 ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    with pytest.raises(UserError, match="cannot be read"):
        describe_file(str(tmp_path / "none.pth"))


def test_paddles_files_are_not_written(tmp_path):
    with pytest.raises(UserError, match="read, but not written; write .npz instead"):
        write_official_weights(str(tmp_path / "x.pdparams"), {})
