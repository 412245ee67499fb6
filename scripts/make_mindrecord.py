"""Turn a folder of images into sharded MindRecord files, for jobs that copy a few large files better than many small.

    python scripts/make_mindrecord.py --data_url DATA --output OUT [--shards 16] [--short_side 256]

OUT then serves as --data_url. Without --short_side the image files are stored byte for byte, and training or
evaluation sees the very same batches as from the folder. With it, longer images are resized and stored as JPEG: less
to copy, at the price of random crops from smaller images.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))


def main() -> None:
    from focal.data.folder import find_layout
    from focal.data.mindrecord import check_output, write_mindrecord
    from focal.data.sources import FolderSource
    from focal.errors import UserError

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_url", required=True, help="folder with train/ and val/")
    parser.add_argument("--output", required=True, type=Path, help="folder for the MindRecord files")
    parser.add_argument("--splits", nargs="+", default=["train", "val"], choices=["train", "val"])
    parser.add_argument("--shards", type=int, default=16, help="files per split, 1 to 1000")
    parser.add_argument("--short_side", type=int, default=None, help="resize longer images to this shorter side")
    parser.add_argument("--workers", type=int, default=8, help="threads that read and resize")
    arguments = parser.parse_args()
    if not 1 <= arguments.shards <= 1000 or arguments.workers < 1:
        raise UserError(f"shards: {arguments.shards} must be 1 to 1000, and workers at least 1")
    if arguments.short_side is not None and arguments.short_side < 1:
        raise UserError(f"short_side: {arguments.short_side} must be at least 1 pixel")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    layout = find_layout(arguments.data_url, arguments.splits)
    names: dict[str, list[str]] = {}
    for split in arguments.splits:
        source = getattr(layout, split)
        if not isinstance(source, FolderSource):
            raise UserError(f"data_url: {arguments.data_url} holds MindRecord files already; give the folder of images")
        root = os.path.join(layout.folder, split)
        names[split] = [os.path.relpath(source.name(index), root).replace(os.sep, "/") for index in range(len(source))]
    check_output(arguments.output, layout.class_names, names)
    for split in arguments.splits:
        source, shards = getattr(layout, split), min(arguments.shards, len(names[split]))
        write_mindrecord(source, names[split], arguments.output, split, shards, arguments.short_side, arguments.workers)
    print(f"written to {arguments.output}; use it as --data_url")


if __name__ == "__main__":
    from focal.errors import run_main

    run_main(main)
