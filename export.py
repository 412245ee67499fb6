"""Export a checkpoint: python export.py --config configs/X.yaml --pretrained CKPT --file_format MINDIR|AIR|ONNX

    python export.py --config OUT/config.yaml --pretrained OUT/best/best.ckpt --file_format ONNX --file_name focal.onnx

Without an Ascend the job runs on the CPU.
"""
# PYTHON_ARGCOMPLETE_OK: see docs/configuration.md

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Optional

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))  # a plain checkout needs no installation

from focal.checkpoint.paths import check_input_files
from focal.config import Config, ConfigError, config_from_command_line, for_one_process
from focal.errors import run_main


def main() -> Optional[int]:
    """Read the command line, load the weights, write the file, compare it with the network on real images."""
    config, _ = config_from_command_line(sys.argv[1:], __doc__)
    if config.run.pretrained is None:
        raise ConfigError("pretrained: export.py needs a checkpoint; give --pretrained CKPT")
    check_input_files(config.run, config.data)
    config = for_one_process(config)
    if config.run.file_format == "ONNX":
        # Written from the weights, and checked in float32, which not every Ascend has for matrix products.
        config = dataclasses.replace(config, run=dataclasses.replace(config.run, device_target="CPU"))
    return export(config)


def export(config: Config) -> int:
    """Check the job, build the network, export it and compare the file with it; return the exit code."""
    # MindSpore takes seconds to import: not before the command line is known to be right.
    from focal.checkpoint.class_names import class_names_of
    from focal.checkpoint.files import read_checkpoint
    from focal.checkpoint.weights import load_checkpoint
    from focal.data import find_class_names
    from focal.distributed.device import setup_device
    from focal.distributed.logging import setup_logging
    from focal.distributed.versions import check_versions
    from focal.export.mindir import check_export, export_network, find_images, load_images
    from focal.models import create_model

    path = check_export(config)
    paths = find_images(config.data.data_url)
    setup_logging(setup_device(config.run).rank)
    check_versions()

    network = create_model(config)
    checkpoint = read_checkpoint(Path(str(config.run.pretrained)))
    load_checkpoint(network, checkpoint, config.run.use_ema)
    class_names = class_names_of(checkpoint.meta)
    if class_names is None:  # weights from elsewhere: the names of the data, if it has as many classes
        found = find_class_names(config.data.data_url)
        class_names = found if len(found) == config.model.num_classes else None
    difference = export_network(network, config, path, load_images(paths, config), class_names)

    print(f"wrote {path} ({path.stat().st_size / 2**20:.1f} MiB)")
    print(f"class names: {_first(class_names) if class_names else 'not known'}")
    if config.run.file_format != "AIR":
        print(f"largest difference of logits on {len(paths)} images: {difference:.1e}")
    return 0


def _first(names: tuple[str, ...], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


if __name__ == "__main__":
    run_main(main)
