"""Small copies of the images of val, to stand inside a page."""

from __future__ import annotations

import base64
import io
import os
from typing import Optional

from PIL import Image

from focal.data.decode import UnreadableImage, decode_rgb
from focal.data.layout import find_layout
from focal.errors import UserError
from focal.predictions import Predictions

SIDE = 128  # pixels of the longer side, at most
QUALITY = 80  # of JPEG: about 4 kB per picture


class ValPictures:
    """The images of val that predictions were made for.

    Args:
        data_folder: the `data_url` of the training.
        predictions: say which images there were.

    Raises:
        UserError: the folder is missing or holds no val, or other images than those that were evaluated.
    """

    def __init__(self, data_folder: str, predictions: Predictions) -> None:
        layout = find_layout(data_folder, ("val",))
        assert layout.val is not None, "find_layout was asked for val"
        self._source, self._predictions = layout.val, predictions
        for position in (0, len(predictions.samples) - 1) if len(predictions.samples) else ():
            sample = int(predictions.samples[position])
            found = os.path.relpath(layout.val.name(sample), layout.folder) if sample < len(layout.val) else "nothing"
            if found != predictions.names[position]:
                raise UserError(
                    f"val has {found} where {predictions.names[position]} was evaluated: the images have changed"
                )

    def picture(self, position: int) -> Optional[str]:
        """An image as a `data:` address, or None if it cannot be read.

        Args:
            position: among the predictions.
        """
        try:
            image = decode_rgb(self._source.read(int(self._predictions.samples[position])))
        except UnreadableImage:
            return None
        return data_address(image)


def data_address(image: Image.Image) -> str:
    """A small JPEG copy of an RGB image as a `data:` address."""
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
