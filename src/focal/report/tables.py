"""Tables with a column per run: results, settings, machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from focal.report.runs import Run, default_settings, shown_value


class Row(NamedTuple):
    """A line of a table with a column per run.

    Attributes:
        name: what it is about, with its unit.
        values: of each run, as text.
        marked: whether it deserves attention.
    """

    name: str
    values: list[str]
    marked: bool = False


def summary_rows(runs: Sequence[Run]) -> list[Row]:
    """The figures that one asks for first."""
    rows: dict[str, list[str]] = {}
    for run in runs:
        for name, value in _summary(run).items():
            rows.setdefault(name, []).append(value)
    return [Row(name, values) for name, values in rows.items() if any(value != "–" for value in values)]


def _summary(run: Run) -> dict[str, str]:
    best, prefix = run.best() or ({}, "")
    last = run.evaluations[-1] if run.evaluations else {}
    steps = run.train[-1].get("update") if run.train else None
    seconds = run.training_seconds()
    skipped = sum(record.get("nonfinite", 0) for record in run.train)
    return {
        "network": shown_value(run.settings.get("arch", "–")),
        "best top-1 (%)": number(best.get(f"{prefix}top1"), 2),
        "its top-5 (%)": number(best.get(f"{prefix}top5"), 2),
        "its loss": number(best.get(f"{prefix}loss"), 4),
        "reached by": ("EMA weights" if prefix else "raw weights") if best else "–",
        "in epoch": number(best.get("epoch"), 0),
        "last top-1, raw (%)": number(last.get("top1"), 2),
        "last top-1, EMA (%)": number(last.get("ema_top1"), 2),
        "images of val": number(last.get("images"), 0),
        "epochs done": number(run.train[-1]["epoch"] if run.train else None, 2),
        "epochs planned": number(run.settings.get("epochs"), 0),
        "steps done": number(steps, 0),
        "steps skipped (not finite)": number(skipped, 0) if run.train else "–",
        "images per step, all devices": number(run.images_per_step(), 0),
        "training speed, median (images/s)": number(run.speed(), 1),
        "training time without evaluation": "–" if seconds is None else duration(seconds),
    }


def number(value: Any, digits: int) -> str:
    """A number with a fixed number of digits and groups of three; a dash if there is none."""
    return f"{value:,.{digits}f}" if isinstance(value, (int, float)) else "–"


def duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def settings_rows(runs: Sequence[Run]) -> list[Row]:
    """Every setting, in the order of the schema; marked if the runs differ or, with one run, if it is not the default.

    Keys that the schema does not know, of other versions, come last.
    """
    if not any(run.settings for run in runs):
        return []
    defaults = default_settings()
    names = [*defaults, *sorted({name for run in runs for name in run.settings} - set(defaults))]
    rows = []
    for name in names:
        values = [shown_value(run.settings[name]) if name in run.settings else "–" for run in runs]
        if all(value == "–" for value in values):
            continue
        default = shown_value(defaults[name]) if name in defaults else None
        rows.append(Row(name, values, len(set(values)) > 1 if len(runs) > 1 else values[0] != default))
    return rows


_MACHINE = {
    "started": "last start",
    "device_target": "computes on",
    "chip": "chip",
    "devices": "devices",
    "devices_per_machine": "devices per machine",
    "processor": "processor",
    "processors": "processor cores",
    "memory_gib": "main memory (GiB)",
    "system": "system",
    "python": "Python",
    "mindspore": "MindSpore",
    "numpy": "NumPy",
    "cann": "CANN",
}


def machine_rows(runs: Sequence[Run]) -> list[Row]:
    """What each run was made on; lines that say nothing are left out."""
    rows = []
    for key, name in _MACHINE.items():
        values = ["–" if run.machine.get(key) is None else str(run.machine[key]) for run in runs]
        if any(value != "–" for value in values):
            rows.append(Row(name, values))
    return rows
