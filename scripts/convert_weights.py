"""Convert weights between the authors' PyTorch code and this one.

    python scripts/convert_weights.py --from X.pth --arch focal_tiny_patch4_window7_224 --to X.ckpt
    python scripts/convert_weights.py --from best.ckpt --config configs/mine.yaml --to X.safetensors [--use_ema True]

Weight files: .pth (with PyTorch, an optional extra), .safetensors, .npz, and to read from, PaddlePaddle's .pdparams.
Nothing in a file is executed. Its size and checksum are printed.
--num_classes, --image_size and --window_size may differ from the file's: the head is re-initialised, and what has the
size of a window or image is resampled. If --arch is not a published model, convert at the file's own sizes: what loads
the checkpoint resamples it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from focal.config import ConfigError, config_and_arguments  # noqa: E402
from focal.errors import run_main  # noqa: E402

WEIGHT_FILES = (".pth", ".pt", ".safetensors", ".npz", ".pdparams")


def main() -> Optional[int]:
    """Read the command line, convert, say what was not taken over."""
    config, arguments = config_and_arguments(["--device_target", "CPU", *sys.argv[1:]], __doc__, add_arguments)
    source, target = arguments.source, arguments.target
    check_files(source, target)
    import mindspore as ms

    ms.set_context(mode=ms.PYNATIVE_MODE, device_target="CPU")
    from focal.checkpoint.convert import convert_from_checkpoint, convert_to_checkpoint
    from focal.checkpoint.weight_files import describe_file

    print(describe_file(source), flush=True)
    if target.endswith(".ckpt"):
        notes = convert_to_checkpoint(source, target, config)
    else:
        notes = convert_from_checkpoint(source, target, config, config.run.use_ema)
    for note in notes:
        print(f"note: {note}")
    print(f"{source} -> {target}")
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--from", dest="source", metavar="FILE", help="the weights to convert")
    parser.add_argument("--to", dest="target", metavar="FILE", help="the file to write")


def check_files(source: Optional[str], target: Optional[str]) -> None:
    """Refuse files that cannot be converted into each other."""
    for name, path in (("--from", source), ("--to", target)):
        if not path:
            raise ConfigError(f"{name} FILE is missing; see python scripts/convert_weights.py --help")
    others = [path for path in (source, target) if Path(path).suffix != ".ckpt"]
    if len(others) != 1:
        raise ConfigError("exactly one of --from and --to must be a .ckpt file")
    if Path(others[0]).suffix.lower() not in WEIGHT_FILES:
        raise ConfigError(f"{others[0]}: unknown kind of weight file; known are {', '.join(WEIGHT_FILES)}")
    if target.lower().endswith(".pdparams"):
        raise ConfigError(f"to: {target}: .pdparams files are read, but not written; write .npz instead")
    if not Path(source).is_file():
        raise ConfigError(f"from: {source} does not exist")


if __name__ == "__main__":
    run_main(main)
