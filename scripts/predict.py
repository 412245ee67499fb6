"""Classify images: python scripts/predict.py --config configs/X.yaml --pretrained MODEL IMAGE...

MODEL is a checkpoint (.ckpt) or a file written by export.py (.mindir, .onnx).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from focal.checkpoint.paths import check_checkpoint_files  # noqa: E402
from focal.config import ConfigError, config_and_arguments, for_one_process  # noqa: E402
from focal.errors import run_main  # noqa: E402


def main() -> Optional[int]:
    """Read the command line, open the model, print the likeliest classes of each image."""
    config, arguments = config_and_arguments(sys.argv[1:], __doc__, add_arguments)
    images = arguments.images
    if config.run.pretrained is None:
        raise ConfigError("pretrained: no model given; add --pretrained MODEL (.ckpt, .mindir or .onnx)")
    if not images:
        raise ConfigError("no image given; name image files after the flags")
    missing = [image for image in images if not Path(image).is_file()]
    if missing:
        raise ConfigError(f"image: {missing[0]} does not exist")
    check_checkpoint_files(config.run)
    config = for_one_process(config)
    from focal.distributed.device import setup_device
    from focal.distributed.versions import check_versions
    from focal.predict import classify, open_model

    setup_device(config.run)
    check_versions()
    for prediction in classify(images, open_model(config.run.pretrained, config), config):
        likeliest = ", ".join(f"{name} {100 * probability:.1f} %" for name, probability in prediction.classes)
        print(f"{prediction.path}: {likeliest}")
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image files")


if __name__ == "__main__":
    run_main(main)
