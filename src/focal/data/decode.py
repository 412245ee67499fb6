"""From the bytes of an image file to an RGB Pillow image, or to one exception with the reason why not."""

from __future__ import annotations

import errno
import io
import os

import numpy as np
from PIL import Image, UnidentifiedImageError

from focal.errors import UserError

# What Pillow may take a file for, whatever its name ends in. Others do more than decode: Pillow starts Ghostscript for
# PostScript. JPEG includes the MPO files of cameras. Pillow has AVIF since 11.3.
Image.init()  # completes Image.OPEN
FORMATS = tuple(
    name for name in ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP", "AVIF") if name in Image.OPEN
)
MAX_FILE_BYTES = 1 << 30  # an uncompressed image of 16 bits per channel at Pillow's limit of 178,956,970 pixels
_OVERSHOOT = 0.05  # how far values meant for 0 .. 1 may leave it, as they do after bicubic resizing
_NO_MEMORY = "num_parallel_workers: there is no memory left to read an image; lower it"


class UnreadableImage(Exception):
    """An image file cannot be read or decoded; the message gives the reason, without the path."""


def decode_rgb(data: bytes) -> Image.Image:
    """Decode the first frame of an image file into mode RGB.

    As in torchvision's and timm's loaders, the EXIF orientation is not applied, alpha is dropped, and CMYK, palette and
    greyscale images are converted. Unlike there, images with 16 bits per channel keep the upper 8 instead of saturating
    to white, and float images with values in 0 .. 1 are scaled to 0 .. 255 instead of becoming black.

    Raises:
        UnreadableImage: the bytes are not an image of one of `FORMATS`, the file is truncated, its header states more
            than 178,956,970 pixels (Pillow's limit), or float values are outside 0 .. 255.
        UserError: there is no memory to decode the image.
    """
    if not data:
        raise UnreadableImage("empty file")
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        image.load()
        if image.mode.startswith("I"):
            image = _upper_byte(image)
        elif image.mode == "F":
            image = _eight_bits(image)
        return image if image.mode == "RGB" else image.convert("RGB")
    except UnreadableImage:
        raise
    except MemoryError:
        raise UserError(_NO_MEMORY) from None
    except UnidentifiedImageError as error:  # whose message holds an address in memory
        raise UnreadableImage(f"not a file of a known format ({', '.join(FORMATS)})") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise UnreadableImage(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


def _upper_byte(image: Image.Image) -> Image.Image:
    """Convert 16-bit greyscale (mode I;16, or I in older versions of Pillow) to 8-bit greyscale."""
    values = np.asarray(image)
    if values.dtype.itemsize > 2:
        values = np.clip(values, 0, 65535)
    return Image.fromarray((values >> 8).astype(np.uint8))


def _eight_bits(image: Image.Image) -> Image.Image:
    """Convert greyscale of mode F to 8 bits: values in 0 .. 1 are scaled, others in 0 .. 255 lose their fractions."""
    values = np.asarray(image)
    lowest, highest = float(values.min()), float(values.max())  # nan if any value is
    if -_OVERSHOOT <= lowest <= highest <= 1 + _OVERSHOOT:
        return Image.fromarray((np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8))
    if 0 <= lowest <= highest <= 255:
        return image.convert("L")
    raise UnreadableImage(f"float values from {lowest:g} to {highest:g}, which are read from 0 to 1, or to 255, only")


def read_file(path: str) -> bytes:
    """Read a whole file.

    Raises:
        UnreadableImage: the file cannot be opened or read, or is larger than `MAX_FILE_BYTES`.
        UserError: see `refuse_shortage`.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_FILE_BYTES:
                raise UnreadableImage(f"{size} bytes, more than the {MAX_FILE_BYTES} that are read")
            return file.read()
    except MemoryError:
        raise UserError(_NO_MEMORY) from None
    except OSError as error:
        refuse_shortage(error)
        raise UnreadableImage(f"{os.strerror(error.errno) if error.errno else error}") from error


def refuse_shortage(error: OSError) -> None:
    """Raise UserError if a file could not be read because this machine is short of something, which says nothing
    against the file: a training that put other images in the place of sound ones would go on, with other results.
    """
    if error.errno in (errno.EMFILE, errno.ENFILE):
        reason = f"cannot read an image ({os.strerror(error.errno)})"
        raise UserError(f"num_parallel_workers: {reason}; lower it or raise ulimit -n") from error
    if error.errno == errno.ENOMEM:
        raise UserError(_NO_MEMORY) from error
