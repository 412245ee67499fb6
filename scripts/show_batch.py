"""Save a training batch as a picture, augmented and mixed, with its targets.

    python scripts/show_batch.py --config configs/X.yaml --data_url DATA [--output batch.png] [--epoch 0] [--step 0]

Every key of the configuration is a flag, as in train.py: --batch_size 32 --mixup_mode elem.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))


def main() -> None:
    from focal.config import config_from_command_line
    from focal.data import TrainData, check_data
    from focal.data.inspection import contact_sheet
    from focal.errors import UserError

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--output", default="batch.png")
    parser.add_argument("--epoch", type=int, default=0)
    parser.add_argument("--step", type=int, default=0)
    arguments, others = parser.parse_known_args()
    config, _ = config_from_command_line(others, __doc__.splitlines()[0])
    layout = check_data(config, config.data.data_url, splits=("train",))
    data = TrainData(config, layout)
    if arguments.epoch < 0 or not 0 <= arguments.step < data.steps_per_epoch:
        raise UserError(f"step: {arguments.step} of epoch {arguments.epoch}; an epoch has {data.steps_per_epoch} steps")
    images, targets, _, _ = data.batches.load(arguments.epoch, arguments.step)
    sheet = contact_sheet(images, targets, layout.class_names, config.data)
    try:
        sheet.save(arguments.output)
    except (ValueError, OSError) as error:  # a kind of picture that Pillow does not know; no such folder
        raise UserError(f"output: {arguments.output} cannot be written ({error}); give e.g. batch.png") from None
    print(f"{len(images)} images of epoch {arguments.epoch}, step {arguments.step}: {arguments.output}")


if __name__ == "__main__":
    from focal.errors import run_main

    run_main(main)
