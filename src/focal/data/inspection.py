"""Looking at data: every image decoded once to find unreadable ones, and a contact sheet of a training batch."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Iterator, Optional, Sequence

import numpy as np
from PIL import Image, ImageDraw

from focal.config.schema import DataConfig
from focal.data.decode import UnreadableImage, decode_rgb
from focal.data.sources import ImageSource

_CAPTION_HEIGHT = 26
_MARGIN = 4


def find_unreadable(source: ImageSource, workers: int) -> Iterator[tuple[str, str]]:
    """Decode every image; yields (path, reason) of those that cannot be, in order."""

    def problem(index: int) -> Optional[tuple[str, str]]:
        try:
            decode_rgb(source.read(index))
        except UnreadableImage as error:
            return source.name(index), str(error)
        return None

    with ThreadPoolExecutor(workers) as pool:
        # A bounded number of images at a time, so that a long list does not fill the memory with tasks.
        remaining = iter(range(len(source)))
        pending = deque(pool.submit(problem, index) for index in islice(remaining, 4 * workers))
        while pending:
            found = pending.popleft().result()
            pending.extend(pool.submit(problem, index) for index in islice(remaining, 1))
            if found is not None:
                yield found


def contact_sheet(
    images: np.ndarray, targets: np.ndarray, class_names: Sequence[str], data: DataConfig, columns: int = 8
) -> Image.Image:
    """A batch as one picture: each image as the network sees it, with its largest two targets below.

    Args:
        images: normalised float32 (B, 3, H, W).
        targets: float32 (B, num_classes).
        data: mean and deviation to undo.
    """
    mean, std = (np.array(values, dtype=np.float32)[:, None, None] for values in (data.image_mean, data.image_std))
    pixels = np.clip(np.rint((images * std + mean) * 255), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    count, height, width, _ = pixels.shape
    columns = min(columns, count)
    cell_width, cell_height = max(width, 96) + _MARGIN, height + _CAPTION_HEIGHT + _MARGIN
    sheet = Image.new("RGB", (columns * cell_width + _MARGIN, -(-count // columns) * cell_height + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for number in range(count):
        left = _MARGIN + number % columns * cell_width
        top = _MARGIN + number // columns * cell_height
        sheet.paste(Image.fromarray(pixels[number]), (left, top))
        best = np.argsort(-targets[number], kind="stable")[:2]
        captions = [f"{targets[number, label]:.3f} {class_names[label]}" for label in best]
        for line, caption in enumerate(captions):
            draw.text((left, top + height + 12 * line), caption[: cell_width // 6], fill="black")
    return sheet
