"""Write scikit-learn's handwritten digits as an image folder: python scripts/make_digits.py FOLDER"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.errors import UserError, run_main  # noqa: E402


def main() -> None:
    """Write train/ and val/ below the folder named on the command line."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise UserError("usage: python scripts/make_digits.py FOLDER")
    from src.quickstart.digits import write_digits

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    write_digits(sys.argv[1])


if __name__ == "__main__":
    run_main(main)
