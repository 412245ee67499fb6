"""Print the closing table of the quickstart, and its last line for machines.

python scripts/quickstart_summary.py FOLDER SECONDS
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path


def summarise(output: Path, best: dict, ema: dict, export_log: str, mindir: Path, seconds: int) -> str:
    """Text of the closing table.

    Args:
        output: train_url of the training.
        best, ema: what eval.py wrote as JSON for the raw and the EMA weights of the best checkpoint.
        export_log: what export.py printed.
        mindir: exported file.
        seconds: of the whole run, installation aside.
    """
    epochs = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    speeds = sorted(entry["images_per_second"] for entry in epochs if "images_per_second" in entry)
    match = re.search(r"largest difference of logits on \d+ images: (\S+)", export_log)
    assert match is not None, "export.py did not print its comparison"
    rows = [
        ("top-1 accuracy", f"{best['top1']:.2f} %"),
        ("top-1 accuracy of the EMA weights", f"{ema['top1']:.2f} %"),
        ("held-out images", str(best["images"])),
        ("training speed", f"{speeds[len(speeds) // 2]:.0f} images/s"),
        ("evaluation speed", f"{best['images_per_second']:.0f} images/s"),
        ("best checkpoint", str(output / "best" / "best.ckpt")),
        ("exported network", str(mindir)),
        ("log, metrics, TensorBoard", f"{output / 'log'}, {output / 'metrics.jsonl'}, {output / 'tensorboard'}"),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name.ljust(width)}  {value}" for name, value in rows]
    lines.append(
        f"quickstart: top1={best['top1']:.2f} ema_top1={ema['top1']:.2f} images={best['images']} "
        f"mindir_max_abs_diff={match.group(1)} seconds={seconds}"
    )
    return "\n".join(lines)


def main() -> None:
    """Gather what the quickstart left in its folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the quickstart has written its results")
    parser.add_argument("seconds", type=int, help="how long it took, installation aside")
    arguments = parser.parse_args()
    folder = arguments.folder
    best, ema = (json.loads((folder / name).read_text()) for name in ("eval.json", "eval_ema.json"))
    export_log = (folder / "export.log").read_text()
    print(summarise(folder / "output", best, ema, export_log, folder / "digits.mindir", arguments.seconds))


if __name__ == "__main__":
    main()
