"""Print the closing table of the quickstart: python scripts/quickstart_summary.py FOLDER SECONDS"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.quickstart.summary import summarise  # noqa: E402


def main() -> None:
    """Gather what the quickstart left in its folder."""
    folder = Path(sys.argv[1])
    best, averaged = (json.loads((folder / name).read_text()) for name in ("eval.json", "eval_ema.json"))
    export_log = (folder / "export.log").read_text()
    print(summarise(folder / "output", best, averaged, export_log, folder / "digits.mindir", int(sys.argv[2])))


if __name__ == "__main__":
    main()
