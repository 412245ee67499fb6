"""Convert a folder of images to sharded MindRecord files: a cloud job copies few large files faster than many small.

    python scripts/make_mindrecord.py --data_url DATA --output OUT [--shards 16] [--short_side 256]

OUT then serves as --data_url. Without --short_side the image files are stored byte for byte, and training and
evaluation get the same batches as from the folder. With it, larger images are resized and stored as JPEG: there is less
to copy, but random crops are taken from smaller images.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))


def main() -> None:
    from focal.config.help import script_parser
    from focal.data.folder import ImageFiles
    from focal.data.layout import find_layout
    from focal.data.mindrecord import check_output, write_mindrecord
    from focal.errors import UserError

    parser = script_parser(__doc__)
    parser.add_argument("--data_url", required=True, help="folder with train/ and val/")
    parser.add_argument("--output", required=True, type=Path, help="folder for the MindRecord files")
    parser.add_argument("--splits", nargs="+", default=["train", "val"], choices=["train", "val"])
    parser.add_argument("--shards", type=int, default=16, help="files per split, 1 to 1000")
    parser.add_argument("--short_side", type=int, default=None, help="resize larger images to this shorter side")
    parser.add_argument("--workers", type=int, default=8, help="number of threads that read and resize")
    arguments = parser.parse_args()
    if not 1 <= arguments.shards <= 1000 or arguments.workers < 1:
        raise UserError(f"shards: {arguments.shards} must be 1 to 1000, and workers at least 1")
    if arguments.short_side is not None and arguments.short_side < 1:
        raise UserError(f"short_side: {arguments.short_side} must be at least 1 pixel")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    layout = find_layout(arguments.data_url, arguments.splits)
    sources = {split: getattr(layout, split) for split in arguments.splits}
    if not all(isinstance(source, ImageFiles) for source in sources.values()):
        raise UserError(f"data_url: {arguments.data_url} holds MindRecord files already; give the folder of images")
    check_output(arguments.output, layout.known_class_names, sources)
    for split, source in sources.items():
        shards = min(arguments.shards, len(source))
        write_mindrecord(source, arguments.output, split, shards, arguments.short_side, arguments.workers)
    print(f"written to {arguments.output}; use it as --data_url")


if __name__ == "__main__":
    from focal.errors import run_main

    run_main(main)
