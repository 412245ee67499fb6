"""Print the published models: python scripts/list_models.py"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from focal.config import load_config  # noqa: E402
from focal.config.architectures import PAPER_TOP1  # noqa: E402
from focal.config.help import script_parser  # noqa: E402
from focal.models.focal_transformer import FocalTransformer  # noqa: E402
from focal.models.macs import actual_macs, official_macs  # noqa: E402


def main() -> None:
    """Print a table with one line per model."""
    script_parser(__doc__).parse_args()
    rows = [("model", "parameters", "MACs", "actual", "paper top-1", "config")]
    for arch, top1 in PAPER_TOP1.items():
        model = load_config({"arch": arch}).model
        parameters = sum(parameter.size for parameter in FocalTransformer(model).trainable_params())
        rows.append(
            (
                arch,
                f"{parameters / 1e6:.2f} M",
                f"{official_macs(model) / 1e9:.2f} G",
                f"{actual_macs(model) / 1e9:.2f} G",
                f"{top1:.1f} %",
                f"configs/{arch}.yaml",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    print("MACs per image as the authors' flops() counts them; actual: those of all matrix products and convolutions")


if __name__ == "__main__":
    main()
