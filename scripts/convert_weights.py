"""Convert weights between the authors' PyTorch code and this one.

    python scripts/convert_weights.py --from X.pth --arch focal_tiny_patch4_window7_224 --to X.ckpt
    python scripts/convert_weights.py --from best.ckpt --config configs/mine.yaml --to X.safetensors [--use_ema True]

Weight files: .pth (with PyTorch, an optional extra; nothing in the file is executed), .safetensors, .npz.
--num_classes and --image_size may differ from the file's: the head, or what depends on the size, is re-initialised.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from focal.config import ConfigError, config_from_command_line  # noqa: E402
from focal.errors import run_main  # noqa: E402

WEIGHT_FILES = (".pth", ".pt", ".safetensors", ".npz")


def main() -> Optional[int]:
    """Read the command line, convert, say what was not taken over."""
    source, target, rest = split_arguments(sys.argv[1:])
    config, _ = config_from_command_line(["--device_target", "CPU", *rest], __doc__)
    if not Path(source).is_file():
        raise ConfigError(f"from: {source} does not exist")
    import mindspore as ms

    ms.set_context(mode=ms.PYNATIVE_MODE, device_target="CPU")
    from focal.checkpoint.convert import convert_from_checkpoint, convert_to_checkpoint

    if target.endswith(".ckpt"):
        for note in convert_to_checkpoint(source, target, config):
            print(f"note: {note}")
    else:
        convert_from_checkpoint(source, target, config, config.run.use_ema)
    print(f"{source} -> {target}")
    return 0


def split_arguments(argv: list[str]) -> tuple[str, str, list[str]]:
    """The values of --from and --to, and the other arguments."""
    found: dict[str, str] = {}
    rest: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name in ("--from", "--to"):
            found[name] = value if equals else next(arguments, "")
        else:
            rest.append(argument)
    if "-h" not in rest and "--help" not in rest:
        for name in ("--from", "--to"):
            if not found.get(name):
                raise ConfigError(f"{name} FILE is missing; see python scripts/convert_weights.py --help")
        kinds = [Path(found[name]).suffix == ".ckpt" for name in ("--from", "--to")]
        if sum(kinds) != 1:
            raise ConfigError("exactly one of --from and --to must be a .ckpt file")
        other = found["--to" if kinds[0] else "--from"]
        if Path(other).suffix.lower() not in WEIGHT_FILES:
            raise ConfigError(f"{other}: unknown kind of weight file; known are {', '.join(WEIGHT_FILES)}")
    return found.get("--from", ""), found.get("--to", ""), rest


if __name__ == "__main__":
    run_main(main)
