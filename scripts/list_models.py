"""Print the model zoo: python scripts/list_models.py"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from focal.config import load_config  # noqa: E402
from focal.config.architectures import paper_top1, published_archs  # noqa: E402
from focal.models.focal_transformer import FocalTransformer  # noqa: E402
from focal.models.macs import official_multiply_adds, true_multiply_adds  # noqa: E402


def main() -> None:
    """One line per published model."""
    rows = [("model", "parameters", "multiply-adds", "truly", "paper top-1", "config")]
    for arch in published_archs():
        model = load_config({"arch": arch}).model
        parameters = sum(parameter.size for parameter in FocalTransformer(model).trainable_params())
        rows.append(
            (
                arch,
                f"{parameters / 1e6:.2f} M",
                f"{official_multiply_adds(model) / 1e9:.2f} G",
                f"{true_multiply_adds(model) / 1e9:.2f} G",
                f"{paper_top1(arch):.1f} %",
                f"configs/{arch}.yaml",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    sys.stdout.write(
        "multiply-adds: as the authors' flops() counts them; truly: all matrix products and convolutions\n"
    )


if __name__ == "__main__":
    main()
