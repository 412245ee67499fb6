"""Average the weights of checkpoints: python scripts/average_checkpoints.py OUT/best/*.ckpt --to averaged.ckpt

    python scripts/average_checkpoints.py OUT/best/*.ckpt --to averaged.ckpt --use_ema True --best 3
    python eval.py --config OUT/config.yaml --pretrained averaged.ckpt --data_url DATA

The checkpoints are of one training (--keep_best_max 5 keeps five), or of several that started from the same weights.
The result holds weights only, raw or EMA, and is used like any other checkpoint; --use_ema is not needed any more then.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from focal.config import ConfigError  # noqa: E402
from focal.config.help import script_parser  # noqa: E402
from focal.errors import run_main  # noqa: E402


def main() -> Optional[int]:
    """Read the command line, average, write, say which files it were."""
    arguments = parse_arguments()
    target: Path = arguments.to
    if target.suffix != ".ckpt":
        raise ConfigError(f"to: {target} must end in .ckpt")
    if target.exists():
        raise ConfigError(f"to: {target} exists; name another file, or remove it")
    from focal.checkpoint.average import average_checkpoints, best_checkpoints
    from focal.checkpoint.files import write_checkpoint
    from focal.checkpoint.paths import check_output_file

    check_output_file("to", str(target))
    use_ema = arguments.use_ema == "True"
    files = list(dict.fromkeys(arguments.files))
    if arguments.best is not None:
        files = best_checkpoints(files, arguments.best, use_ema)
    tensors, meta = average_checkpoints(files, use_ema)
    write_checkpoint(target, tensors, meta)
    print(f"mean of the {'EMA' if use_ema else 'raw'} weights of {len(files)} checkpoints -> {target}")
    for file in files:
        print(f"  {file}")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = script_parser(__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="checkpoints, two or more")
    parser.add_argument("--to", type=Path, required=True, metavar="FILE", help="checkpoint to write")
    parser.add_argument("--use_ema", choices=("True", "False"), default="False", help="average the EMA weights [False]")
    parser.add_argument("--best", type=int, metavar="N", help="of the files, take the N of highest top-1 only")
    return parser.parse_args()


if __name__ == "__main__":
    run_main(main)
