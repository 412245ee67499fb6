"""Make one HTML page about one or several trainings: python scripts/report.py RUN_DIR... [--output FILE]

RUN_DIR is the train_url of a training, finished or not. The page holds everything it shows and needs no network:
results, curves, accuracy per class, confusions, the worst mistakes with their pictures, settings and machine; several
runs stand side by side. It needs jinja2 and matplotlib: pip install '.[report]'
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from focal.errors import run_main  # noqa: E402
from focal.report import write_report  # noqa: E402


def main() -> int:
    """Read the folders' names, write the page and say where it is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN_DIR", help="train_url of a training")
    parser.add_argument(
        "--output", type=Path, help="HTML file (default: report.html in RUN_DIR, or in this folder for several runs)"
    )
    parser.add_argument("--data_url", help="folder with val, if it is no longer where the training found it")
    arguments = parser.parse_args()
    output = arguments.output or (arguments.folders[0] if len(arguments.folders) == 1 else Path()) / "report.html"
    write_report(arguments.folders, output, arguments.data_url)
    print(f"{output}: {output.stat().st_size / 1024:.0f} KB")
    return 0


if __name__ == "__main__":
    run_main(main)
