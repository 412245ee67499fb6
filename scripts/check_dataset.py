"""Decode every image of a dataset and name those that cannot be read.

    python scripts/check_dataset.py --data_url DATA [--splits train val] [--workers 8]

The exit code is 1 if any image is unreadable.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

if TYPE_CHECKING:
    from focal.data.folder import ImageSource


def main() -> int:
    from focal.config.help import script_parser
    from focal.data.layout import find_layout
    from focal.errors import printable

    sys.stdout.reconfigure(errors="backslashreplace")  # names may hold characters that the terminal's encoding lacks
    parser = script_parser(__doc__)
    parser.add_argument("--data_url", required=True, help="folder with train/ and val/, or MindRecord files")
    parser.add_argument("--splits", nargs="+", default=["train", "val"], choices=["train", "val"])
    parser.add_argument("--workers", type=int, default=8, help="number of threads")
    arguments = parser.parse_args()
    layout = find_layout(arguments.data_url, arguments.splits)
    total = 0
    for split in arguments.splits:
        source = getattr(layout, split)
        bad = 0
        for name, reason in find_unreadable(source, max(1, arguments.workers)):
            print(f"unreadable: {printable(name)} ({reason})", flush=True)
            bad += 1
        print(f"{split}: {len(source)} images, {len(layout.class_names)} classes, {bad} unreadable", flush=True)
        total += bad
    return 1 if total else 0


def find_unreadable(source: ImageSource, workers: int) -> Iterator[tuple[str, str]]:
    """Decode every image; yields name and reason of those that cannot be decoded, in order."""
    from focal.data.decode import UnreadableImage, decode_rgb

    def problem(index: int) -> Optional[tuple[str, str]]:
        try:
            decode_rgb(source.read(index))
        except UnreadableImage as error:
            return source.name(index), str(error)
        return None

    with ThreadPoolExecutor(workers) as pool:
        # Submit a bounded number of images at a time, so that tasks for a large dataset do not fill the memory.
        remaining = iter(range(len(source)))
        pending = deque(pool.submit(problem, index) for index in islice(remaining, 4 * workers))
        while pending:
            found = pending.popleft().result()
            pending.extend(pool.submit(problem, index) for index in islice(remaining, 1))
            if found is not None:
                yield found


if __name__ == "__main__":
    from focal.errors import run_main

    run_main(main)
