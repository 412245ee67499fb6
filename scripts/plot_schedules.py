"""Plot learning-rate schedules: python scripts/plot_schedules.py [--config configs/X.yaml] [--output FOLDER]

Writes FOLDER/<schedule>.png for each schedule, and all of them to FOLDER/all.png. Requires matplotlib, which neither
training nor tests use: pip install matplotlib.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from focal.config import load_config  # noqa: E402
from focal.config.help import script_parser  # noqa: E402
from focal.config.loading import all_keys  # noqa: E402
from focal.errors import UserError, run_main  # noqa: E402
from focal.trainers.lr_schedule import learning_rate_factor, learning_rates  # noqa: E402

if TYPE_CHECKING:
    import numpy as np

STEPS_PER_EPOCH = 50  # enough for a smooth line


def main() -> Optional[int]:
    """Draw the schedule of a config, and what the other schedules would make of the same settings."""
    parser = script_parser(__doc__)
    parser.add_argument("--config", default="configs/focalv2_small_useconv_patch4_window7_224.yaml")
    parser.add_argument("--output", default="output/schedules", help="folder for the images")
    parser.add_argument("--device_num", type=int, default=8, help="number of devices, which scales the learning rate")
    arguments = parser.parse_args()
    pyplot = import_pyplot()
    folder = Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    names = all_keys()["lr_scheduler"].field.metadata["choices"]
    lines = {name: schedule(arguments.config, name, arguments.device_num) for name in names}
    for name, line in lines.items():
        draw(pyplot, {name: line}, folder / f"{name}.png")
    draw(pyplot, lines, folder / "all.png")
    print(f"{len(lines) + 1} images in {folder}")
    return 0


def import_pyplot() -> Any:
    """matplotlib.pyplot, with a backend that does not need a display."""
    try:
        import matplotlib
    except ImportError:
        raise UserError("plot_schedules.py needs matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def schedule(config_file: str, name: str, device_num: int) -> np.ndarray:
    """Learning rate of each step, (epochs * STEPS_PER_EPOCH,), for the settings of a file but with schedule `name`."""
    config = load_config(config_file, {"lr_scheduler": name})
    factor = learning_rate_factor(config.data.batch_size, device_num, config.step.accumulation_step)
    return learning_rates(config.optim, STEPS_PER_EPOCH, factor)


def draw(pyplot: Any, lines: dict[str, np.ndarray], path: Path) -> None:
    """Plot learning rates over epochs, one line per schedule, and save the image."""
    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    for name, rates in lines.items():
        axes.plot([step / STEPS_PER_EPOCH for step in range(len(rates))], rates, label=name)
    axes.set_xlabel("epoch")
    axes.set_ylabel("learning rate")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    run_main(main)
