"""Decode every image of a dataset and name those that cannot be read.

    python scripts/check_dataset.py --data_url DATA [--splits train val] [--workers 8]

Exit code 1 if any is unreadable.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))


def main() -> int:
    from focal.data.folder import find_layout
    from focal.data.inspection import find_unreadable

    sys.stdout.reconfigure(errors="backslashreplace")  # a file name may be no text, and is still to be told
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_url", required=True, help="folder with train/ and val/, or MindRecord files")
    parser.add_argument("--splits", nargs="+", default=["train", "val"], choices=["train", "val"])
    parser.add_argument("--workers", type=int, default=8, help="threads")
    arguments = parser.parse_args()
    layout = find_layout(arguments.data_url, arguments.splits)
    total = 0
    for split in arguments.splits:
        source = getattr(layout, split)
        bad = 0
        for path, reason in find_unreadable(source, max(1, arguments.workers)):
            print(f"unreadable: {path} ({reason})", flush=True)
            bad += 1
        print(f"{split}: {len(source)} images, {len(layout.class_names)} classes, {bad} unreadable", flush=True)
        total += bad
    return 1 if total else 0


if __name__ == "__main__":
    from focal.errors import run_main

    run_main(main)
