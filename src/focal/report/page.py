"""The page: what there is to show about each run, in page.html."""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from focal.errors import UserError, one_line
from focal.files import atomic_write
from focal.report.runs import Run, read_runs
from focal.report.tables import machine_rows, settings_rows, summary_rows

logger = logging.getLogger("focal")

PACKAGES = ("jinja2", "matplotlib")
INSTALL = "pip install '.[report]'"


def report_if_possible(folder: str, data_folder: str) -> None:
    """Write report.html into the folder of a training that has ended; whatever goes wrong is only logged.

    Args:
        folder: the training's output folder.
        data_folder: holds val.
    """
    if missing_packages():
        logger.info("no report.html: %s (%s not found)", INSTALL, " and ".join(missing_packages()))
        return
    try:
        path = Path(folder) / "report.html"
        write_report([Path(folder)], path, data_folder)
        logger.info("report: %s", path)
    except Exception as error:  # the training has succeeded, whatever becomes of its report
        logger.warning("no report.html (%s: %s)", type(error).__name__, one_line(error))


def missing_packages() -> list[str]:
    """Which packages reports need and this Python does not have."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def write_report(folders: Sequence[Path], output: Path, data_folder: Optional[str] = None) -> None:
    """Write one page about one or several trainings.

    Args:
        folders: their `train_url`, in the order in which the page shows them.
        output: the HTML file.
        data_folder: holds val, for the pictures of mistakes; None: the `data_url` of each training.

    Raises:
        UserError: a package is missing, a folder holds no training, or the file cannot be written.
    """
    if missing_packages():
        raise UserError(f"report: {' and '.join(missing_packages())} not found; {INSTALL}")
    html = render(read_runs(folders), data_folder)
    try:
        with atomic_write(output) as temporary:
            temporary.write_bytes(html.encode("utf-8", "replace"))  # names of files need not be valid Unicode
    except OSError as error:
        raise UserError(f"output: {output} cannot be written ({error.strerror or error})") from None


def render(runs: Sequence[Run], data_folder: Optional[str]) -> str:
    """The page as HTML; see `write_report`. Everything that comes from a run is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from focal.report.charts import POINTS
    from focal.report.curves import charts, run_colours
    from focal.report.recognition import MOST_CLASSES, class_tables, mistakes

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("page.html").render(
        runs=runs,
        made=time.strftime("%Y-%m-%d %H:%M"),
        summary=summary_rows(runs),
        charts=charts(runs),
        colours=run_colours(runs),
        condensed=any(len(run.train) > POINTS for run in runs),
        class_tables=class_tables(runs),
        mistakes=[mistakes(run, data_folder) for run in runs if run.predictions is not None],
        settings=settings_rows(runs),
        machine=machine_rows(runs),
        most_classes=MOST_CLASSES,
    )
