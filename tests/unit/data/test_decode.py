"""Image files of every awkward kind are decoded to RGB, or refused with a reason."""

from __future__ import annotations

import errno
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, features

from focal.data.decode import UnreadableImage, decode_rgb, read_file
from focal.errors import UserError


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8))


def test_jpeg_decodes_to_the_pixels_that_pillow_gives(picture: Image.Image) -> None:
    data = _encoded(picture, "JPEG")
    assert decode_rgb(data).tobytes() == Image.open(io.BytesIO(data)).tobytes()


def test_alpha_is_dropped(picture: Image.Image) -> None:
    transparent = picture.copy()
    transparent.putalpha(7)
    assert decode_rgb(_encoded(transparent, "PNG")).tobytes() == picture.tobytes()


def test_palette_image_with_transparency_becomes_rgb() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 100, 50] + [0] * 762)
    assert decode_rgb(_encoded(image, "PNG", transparency=0)).getpixel((0, 0)) == (200, 100, 50)


def test_cmyk_jpeg_becomes_rgb(picture: Image.Image) -> None:
    decoded = decode_rgb(_encoded(picture.convert("CMYK"), "JPEG", quality=100, subsampling=0))
    assert decoded.mode == "RGB"
    assert np.abs(np.asarray(decoded).astype(int) - np.asarray(picture)).mean() < 4


def test_greyscale_image_gets_three_equal_channels(picture: Image.Image) -> None:
    decoded = np.asarray(decode_rgb(_encoded(picture.convert("L"), "PNG")))
    assert (decoded == np.asarray(picture.convert("L"))[:, :, None]).all()


def test_sixteen_bits_keep_their_upper_byte() -> None:
    values = np.array([[0, 255, 256], [32768, 40000, 65535]], dtype=np.uint16)
    decoded = np.asarray(decode_rgb(_encoded(Image.fromarray(values), "PNG")))
    assert (decoded == (values >> 8)[:, :, None]).all()


def test_thirty_two_bits_are_taken_for_sixteen() -> None:
    values = np.array([[0, 40000, 70000]], dtype=np.int32)
    assert np.asarray(decode_rgb(_encoded(Image.fromarray(values), "TIFF")))[0, :, 0].tolist() == [0, 156, 255]


def test_float_values_from_0_to_1_fill_the_range() -> None:
    values = np.array([[0, 0.25, 0.5, 1]], dtype=np.float32)
    assert np.asarray(decode_rgb(_encoded(Image.fromarray(values), "TIFF")))[0, :, 1].tolist() == [0, 64, 128, 255]


def test_float_values_that_overshoot_0_to_1_a_little_are_clipped() -> None:
    values = np.array([[-0.04, 0.5, 1.002, 1.05]], dtype=np.float32)
    assert np.asarray(decode_rgb(_encoded(Image.fromarray(values), "TIFF")))[0, :, 1].tolist() == [0, 128, 255, 255]


def test_float_values_from_0_to_255_are_taken_as_pillow_takes_them() -> None:
    values = np.array([[0, 0.9, 1.5, 127.9, 200, 255]], dtype=np.float32)
    data = _encoded(Image.fromarray(values), "TIFF")
    assert np.asarray(decode_rgb(data))[0, :, 1].tolist() == [0, 0, 1, 127, 200, 255]
    assert decode_rgb(data).tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()


@pytest.mark.parametrize("others", ([0.5, -0.1], [0.5, 256], [-0.04, 200], [0.5, np.nan], [0.5, np.inf], [-np.inf, 1]))
def test_other_float_values_are_refused_with_the_reason(others: list[float]) -> None:
    values = np.array([[0, *others]], dtype=np.float32)
    with pytest.raises(UnreadableImage, match="float values from .* to .*, which are read from 0 to 1, or to 255"):
        decode_rgb(_encoded(Image.fromarray(values), "TIFF"))


def test_camera_file_of_several_jpegs_gives_the_first(picture: Image.Image) -> None:
    data = _encoded(picture, "MPO", save_all=True, append_images=[Image.new("RGB", (20, 12))])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert decode_rgb(data).tobytes() == decode_rgb(_encoded(picture, "JPEG")).tobytes()


def test_postscript_is_refused_before_ghostscript_starts(picture: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments: started.append(1) or picture.im)
    data = _encoded(picture, "EPS")
    Image.open(io.BytesIO(data)).load()
    assert started == [1], "what Pillow does where formats are not named"
    with pytest.raises(UnreadableImage, match="not a file of a known format"):
        decode_rgb(data)
    assert started == [1]


@pytest.mark.parametrize("kind", ("JPEG2000", "WEBP", "AVIF"))
def test_newer_formats_are_decoded_whatever_the_name(picture: Image.Image, kind: str, tmp_path: Path) -> None:
    """Folders of images from the web hold them as `.jpg`."""
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    (tmp_path / "a.jpg").write_bytes(_encoded(picture, kind))
    decoded = decode_rgb(read_file(str(tmp_path / "a.jpg")))
    assert decoded.tobytes() == Image.open(tmp_path / "a.jpg", formats=(kind,)).convert("RGB").tobytes()


def test_an_avif_that_claims_too_many_pixels_is_unreadable(picture: Image.Image) -> None:
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    data = _encoded(picture, "AVIF")
    size = data.index(b"ispe") + 8  # where the header states width and height
    with pytest.raises(UnreadableImage, match="exceeds limit of 178956970 pixels"):
        decode_rgb(data[:size] + struct.pack(">II", 15_000, 15_000) + data[size + 8 :])


@pytest.mark.parametrize("kind", ("TGA", "PCX", "ICO"))
def test_other_formats_are_refused(picture: Image.Image, kind: str) -> None:
    with pytest.raises(UnreadableImage, match="not a file of a known format"):
        decode_rgb(_encoded(picture, kind))


def test_black_and_white_image_becomes_rgb() -> None:
    assert decode_rgb(_encoded(Image.new("1", (3, 3), 1), "PNG")).getpixel((1, 1)) == (255, 255, 255)


def test_exif_rotation_is_not_applied_as_in_torchvision(picture: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotate by 90 degrees to view
    assert decode_rgb(_encoded(picture, "JPEG", exif=exif)).size == (20, 12)


@pytest.mark.parametrize("kind", ("GIF", "WEBP"))
def test_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    decoded = decode_rgb(_encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
    red, _, blue = decoded.getpixel((4, 4))
    assert decoded.mode == "RGB" and red > 200 and blue < 50


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "empty file"), (b"this is a text file\n", r"not a file of a known format \(BMP, GIF, JPEG")],
)
def test_bytes_that_are_not_an_image_are_unreadable(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImage, match=reason) as caught:
        decode_rgb(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ("JPEG", "PNG"))
@pytest.mark.parametrize("fraction", (0.03, 0.5, 0.95))
def test_truncated_file_is_unreadable(picture: Image.Image, kind: str, fraction: float) -> None:
    data = _encoded(picture.resize((200, 120)), kind)
    with pytest.raises(UnreadableImage):
        decode_rgb(data[: int(len(data) * fraction)])


def test_file_of_more_than_a_gibibyte_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "large.png", "wb") as file:
        file.truncate(2**30 + 1)  # sparse: takes no room
    with pytest.raises(UnreadableImage, match="1073741825 bytes, more than"):
        read_file(str(tmp_path / "large.png"))


def test_missing_file_and_folder_are_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="No such file"):
        read_file(str(tmp_path / "none.jpg"))
    with pytest.raises(UnreadableImage, match="directory"):
        read_file(str(tmp_path))


# ---- what the machine lacks is no fault of the file


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EMFILE, r"^num_parallel_workers: .* image \(Too many open files\); lower it or raise ulimit -n$"),
        (errno.ENFILE, "^num_parallel_workers: cannot read an image .*; lower it or raise ulimit -n"),
        (errno.ENOMEM, "^num_parallel_workers: there is no memory left to read an image; lower it"),
    ],
)
def test_a_shortage_of_handles_or_memory_is_not_an_unreadable_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(number, "short of something")

    monkeypatch.setattr("builtins.open", fail)
    with pytest.raises(UserError, match=message):
        read_file(str(tmp_path / "a.jpg"))


def test_an_image_that_memory_does_not_suffice_for_is_not_an_unreadable_file(
    picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.load", fail)
    with pytest.raises(UserError, match="^num_parallel_workers: there is no memory left to read an image; lower it$"):
        decode_rgb(_encoded(picture, "JPEG"))
