"""Plot learning-rate schedules to a PNG: python scripts/plot_schedules.py [--config configs/X.yaml] [--output FOLDER]

One file per schedule, <FOLDER>/<schedule>.png, and one of all together, all.png. Needs matplotlib, which neither
training nor tests do: pip install matplotlib.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from focal.config import load_config  # noqa: E402
from focal.errors import UserError, run_main  # noqa: E402
from focal.trainers.lr_schedule import learning_rate_factor, learning_rates  # noqa: E402

SCHEDULES = ("cosine_lr", "constant_lr", "multistep_lr", "exp_lr", "polynomial")
UPDATES_PER_EPOCH = 50  # enough for a smooth line


def main() -> Optional[int]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/focalv2_small_useconv_patch4_window7_224.yaml")
    parser.add_argument("--output", default="output/schedules", help="folder that takes the pictures")
    parser.add_argument("--device_num", type=int, default=8, help="devices, for the scale of the rates")
    arguments = parser.parse_args()
    pyplot = import_pyplot()
    folder = Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    lines = {name: schedule(arguments.config, name, arguments.device_num) for name in SCHEDULES}
    for name, line in lines.items():
        draw(pyplot, {name: line}, folder / f"{name}.png")
    draw(pyplot, lines, folder / "all.png")
    print(f"{len(lines) + 1} pictures in {folder}")
    return 0


def import_pyplot() -> Any:
    """matplotlib.pyplot with a back end that needs no screen."""
    try:
        import matplotlib
    except ImportError:
        raise UserError("plot_schedules.py needs matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def schedule(config_file: str, name: str, device_num: int) -> Any:
    """Learning rate of each update of a config under another schedule."""
    config = load_config(config_file, {"lr_scheduler": name})
    factor = learning_rate_factor(config.data.batch_size, device_num, config.step.accumulation_step)
    return learning_rates(config.optim, UPDATES_PER_EPOCH, factor)


def draw(pyplot: Any, lines: dict[str, Any], path: Path) -> None:
    """One picture: rate over epochs."""
    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    for name, rates in lines.items():
        axes.plot([update / UPDATES_PER_EPOCH for update in range(len(rates))], rates, label=name)
    axes.set_xlabel("epoch")
    axes.set_ylabel("learning rate")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    run_main(main)
