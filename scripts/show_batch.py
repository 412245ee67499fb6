"""Save a training batch as a picture, augmented and mixed, with its targets.

    python scripts/show_batch.py --config configs/X.yaml --data_url DATA [--output batch.png] [--epoch 0] [--step 0]

Every key of the configuration is a flag, as in train.py: --batch_size 32 --mixup_mode elem.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

if TYPE_CHECKING:
    from focal.config.schema import DataConfig

CAPTION_HEIGHT = 26
MARGIN = 4
COLUMNS = 8


def main() -> None:
    import mindspore as ms
    from mindspore import Tensor

    from focal.config import config_and_arguments
    from focal.data import TrainData, check_data, with_classes_of
    from focal.data.transforms.on_device import PrepareImages
    from focal.errors import UserError

    config, arguments = config_and_arguments(sys.argv[1:], __doc__, add_arguments)
    layout = check_data(config, config.data.data_url, splits=("train",))
    config = with_classes_of(layout, config)
    data = TrainData(config, layout)
    if arguments.epoch < 0 or not 0 <= arguments.step < data.batches_per_epoch:
        raise UserError(
            f"step: {arguments.step} of epoch {arguments.epoch}; an epoch has {data.batches_per_epoch} steps"
        )
    (images, targets, _, *boxes), _ = data.load_batch(arguments.epoch, arguments.step)
    ms.set_device("CPU")
    seen = PrepareImages(config.data)(Tensor(images), *map(Tensor, boxes)).asnumpy()
    sheet = contact_sheet(seen, targets, layout.class_names, config.data)
    try:
        sheet.save(arguments.output)
    except (ValueError, OSError) as error:  # a file type that Pillow does not know, or no such folder
        raise UserError(f"output: {arguments.output} cannot be written ({error}); give e.g. batch.png") from None
    print(f"{len(images)} images of epoch {arguments.epoch}, step {arguments.step}: {arguments.output}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", default="batch.png", help="the picture to write (default: batch.png)")
    parser.add_argument("--epoch", type=int, default=0, help="number of the epoch, from 0 (default: 0)")
    parser.add_argument("--step", type=int, default=0, help="number of the batch in its epoch, from 0 (default: 0)")


def contact_sheet(images: np.ndarray, targets: np.ndarray, class_names: Sequence[str], data: DataConfig) -> Image.Image:
    """A batch as one picture: each image as the network sees it, above the classes with the two largest targets.

    Args:
        images: normalised float32 (B, 3, H, W).
        targets: float32 (B, num_classes).
        class_names: by label.
        data: its mean and standard deviation are undone.
    """
    mean, std = (np.array(values, dtype=np.float32)[:, None, None] for values in (data.image_mean, data.image_std))
    pixels = np.clip(np.rint((images * std + mean) * 255), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    count, height, width, _ = pixels.shape
    columns = min(COLUMNS, count)
    cell_width, cell_height = max(width, 96) + MARGIN, height + CAPTION_HEIGHT + MARGIN
    sheet = Image.new("RGB", (columns * cell_width + MARGIN, -(-count // columns) * cell_height + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for number in range(count):
        left = MARGIN + number % columns * cell_width
        top = MARGIN + number // columns * cell_height
        sheet.paste(Image.fromarray(pixels[number]), (left, top))
        best = np.argsort(-targets[number], kind="stable")[:2]
        captions = [f"{targets[number, label]:.3f} {class_names[label]}" for label in best]
        for line, caption in enumerate(captions):
            draw.text((left, top + height + 12 * line), caption[: cell_width // 6], fill="black")
    return sheet


if __name__ == "__main__":
    from focal.errors import run_main

    run_main(main)
