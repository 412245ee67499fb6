"""The curves that the page shows, and the colours of the runs in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from focal.report.charts import COLOURS, Curve, line_chart
from focal.report.runs import Run


class Chart(NamedTuple):
    """A titled figure, with what its reader has to know."""

    title: str
    svg: str
    note: str


class _Figure(NamedTuple):
    """What a chart draws.

    Attributes:
        title, note: see `Chart`.
        y_label: what its y axis shows, with the unit.
        lines: (kind of record, figure in it, name in the legend) of each line.
        options: further arguments of `line_chart`.
    """

    title: str
    y_label: str
    lines: tuple[tuple[str, str, str], ...]
    note: str = ""
    options: dict[str, Any] = {}


_FIGURES = (
    _Figure(
        "Loss",
        "cross-entropy",
        (("train", "loss", "train"), ("val", "loss", "val"), ("val", "ema_loss", "val, EMA")),
        "train includes Mixup and label smoothing",
    ),
    _Figure("Top-1 accuracy", "top-1 of val (%)", (("val", "top1", "raw"), ("val", "ema_top1", "EMA"))),
    _Figure("Top-5 accuracy", "top-5 of val (%)", (("val", "top5", "raw"), ("val", "ema_top5", "EMA"))),
    _Figure("Learning rate", "learning rate", (("train", "lr", ""),), "", {"from_zero": True}),
    _Figure("Gradient norm", "global norm", (("train", "grad_norm", ""),), "before clipping", {"scale": "log"}),
    _Figure("Loss scale", "loss scale", (("train", "scale", ""),), "halved on overflow", {"scale": "log2"}),
    _Figure(
        "Throughput",
        "images/s, all devices",
        (("train", "images_per_second", ""),),
        "without compilation and evaluation",
        {"from_zero": True},
    ),
    _Figure(
        "Waiting for data",
        "fraction of the time",
        (("train", "data_wait", ""),),
        "in which rank 0 had no batch",
        {"from_zero": True},
    ),
)


def charts(runs: Sequence[Run]) -> list[Chart]:
    """Curves over epochs; those that no run has are left out."""
    found = []
    for figure in _FIGURES:
        curves = _curves(runs, figure)
        if curves:
            found.append(Chart(figure.title, line_chart(curves, figure.y_label, **figure.options), figure.note))
    return found


def run_colours(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """(name, colour) of each run, as the curves show them."""
    return [(run.name, colour) for run, colour in zip(runs, COLOURS)]


def _curves(runs: Sequence[Run], figure: _Figure) -> list[Curve]:
    """The lines of one figure. Colours tell runs apart, or lines if there is one run; EMA is dashed, train is pale."""
    curves = []
    with_val = any(kind == "val" for kind, _, _ in figure.lines)
    for number_of_run, run in enumerate(runs):
        for kind, name, label in figure.lines:
            x, y = run.curve(name) if kind == "train" else run.evaluation_curve(name)
            if not x:
                continue
            ema, faint = name.startswith("ema_"), kind == "train" and with_val
            colour = COLOURS[number_of_run if len(runs) > 1 else 1 if ema else 2 if faint else 0]
            legend = label if len(runs) == 1 else ""
            curves.append(Curve(legend, x, y, colour, "--" if ema else "-", faint, steps=name == "scale"))
    return curves
