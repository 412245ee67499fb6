"""From the bytes of an image file to an RGB Pillow image, or to one exception with the reason why not."""

from __future__ import annotations

import io
import os

import numpy as np
from PIL import Image


class UnreadableImage(Exception):
    """An image file cannot be read or decoded; the message gives the reason, without the path."""


def decode_rgb(data: bytes) -> Image.Image:
    """Decode the first frame of an image file into mode RGB.

    As in torchvision's and timm's loaders, the EXIF orientation is not applied, alpha is dropped, and CMYK, palette and
    greyscale images are converted. Unlike there, images with 16 bits per channel keep the upper 8 instead of saturating
    to white.

    Raises:
        UnreadableImage: the bytes are not an image, or the file is truncated.
    """
    if not data:
        raise UnreadableImage("empty file")
    try:
        image: Image.Image = Image.open(io.BytesIO(data))
        image.load()
        if image.mode.startswith("I"):
            image = _upper_byte(image)
        return image if image.mode == "RGB" else image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise UnreadableImage(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


def _upper_byte(image: Image.Image) -> Image.Image:
    """Convert 16-bit greyscale (mode I;16, or I in older versions of Pillow) to 8-bit greyscale."""
    values = np.asarray(image).astype(np.int64)
    return Image.fromarray((np.clip(values, 0, 65535) >> 8).astype(np.uint8))


def read_file(path: str) -> bytes:
    """Read a whole file.

    Raises:
        UnreadableImage: the file cannot be opened or read.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError as error:
        raise UnreadableImage(f"{os.strerror(error.errno) if error.errno else error}") from error
