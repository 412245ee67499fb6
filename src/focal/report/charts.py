"""Curves and matrices as SVG that stands inside an HTML page.

Text stays text, in the page's font, so a chart takes about 10 kB. Colours are those of Okabe and Ito ("Color Universal
Design", 2008), which people with colour blindness can tell apart.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
POINTS = 300  # of a curve, at most; more would not be seen
_SIZE = (5.2, 2.7)  # inches; the page scales it to its columns
_SETTINGS: dict[str, Any] = {
    "font.size": 8.0,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a class may be called $x$
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": "#444444",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "axes.formatter.use_mathtext": False,
}


@dataclass(frozen=True)
class Curve:
    """A line of a chart.

    Attributes:
        label: for the legend; empty if the page explains the colours.
        x, y: its points.
        colour: one of `COLOURS`.
        style: line style of matplotlib: "-" or "--".
        faint: draw it paler and thinner, because it is noisy or only for comparison.
        steps: draw a value up to the next one, not a slope.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    style: str = "-"
    faint: bool = False
    steps: bool = False


def line_chart(curves: Sequence[Curve], y_label: str, scale: str = "linear", from_zero: bool = False) -> str:
    """Curves over epochs.

    Args:
        curves: of more than `POINTS` points, means are drawn, with the range between lowest and highest behind them.
        y_label: what is shown, with its unit.
        scale: of the y axis: "linear", "log2", or "log": logarithmic if the values are positive and span a decade.
        from_zero: let the y axis start at 0.
    """
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.add_subplot()
        for curve in curves:
            _draw_curve(axes, curve)
        values = np.concatenate([np.asarray(curve.y, np.float64) for curve in curves])
        if values.min() > 0 and (scale == "log2" or (scale == "log" and values.max() > 10 * values.min())):
            axes.set_yscale("log", base=2 if scale == "log2" else 10)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        elif from_zero:
            axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axes.set_xlabel("epoch")
        axes.set_ylabel(y_label)
        axes.grid(axis="y", color="#e4e4e4", linewidth=0.6)
        axes.set_axisbelow(True)
        if any(curve.label for curve in curves):
            figure.legend(loc="outside upper left", ncols=3, frameon=False, handlelength=2.6, columnspacing=1.4)
        return _svg(figure, y_label)


def _draw_curve(axes: Any, curve: Curve) -> None:
    x, mean, low, high = condensed(np.asarray(curve.x, np.float64), np.asarray(curve.y, np.float64))
    marker = "o" if len(x) <= 20 else None
    axes.plot(
        x, mean, curve.style, color=curve.colour, label=curve.label, marker=None if curve.faint else marker,
        markersize=2.5, linewidth=0.9 if curve.faint else 1.4, alpha=0.55 if curve.faint else 1.0,
        drawstyle="steps-post" if curve.steps else "default",
    )  # fmt: skip
    if len(x) < len(curve.x):
        axes.fill_between(x, low, high, color=curve.colour, alpha=0.18, linewidth=0)


def condensed(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """At most `POINTS` points of a curve: x, and the mean, lowest and highest y of equally many neighbouring points."""
    parts = min(len(x), POINTS)
    starts = np.arange(parts) * len(x) // max(parts, 1)
    counts = np.diff(np.append(starts, len(x)))
    if not parts:
        return x, y, y, y
    mean_x, mean_y = (np.add.reduceat(values, starts) / counts for values in (x, y))
    return mean_x, mean_y, np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)


def matrix_chart(counts: np.ndarray, names: Sequence[str]) -> str:
    """A confusion matrix: shades for the share of each row, and the counts where there is room for them.

    Args:
        counts: images by label (rows) and predicted class (columns), (C, C).
        names: of the classes.
    """
    classes = len(counts)
    with matplotlib.rc_context(_SETTINGS):
        side = float(np.clip(0.9 + 0.34 * classes, 3.2, 9.0))
        figure = Figure(figsize=(side, side), layout="constrained")
        axes = figure.add_subplot()
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="none")
        labels = [shortened(name, 22) for name in names]
        size = 8.0 if classes <= 20 else 6.0
        axes.set_xticks(range(classes), labels, rotation=90 if max(map(len, labels)) > 2 else 0, fontsize=size)
        axes.set_yticks(range(classes), labels, fontsize=size)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        if classes <= 25:
            for row, column in np.argwhere(counts > 0).tolist():
                colour = "white" if shares[row, column] > 0.55 else "#222222"
                axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=size)
        return _svg(figure, "confusion matrix")


def shortened(text: str, most: int) -> str:
    """The text in one line of at most `most` characters, all of which are valid Unicode."""
    text = " ".join(text.encode("utf-8", "replace").decode().split())
    return text if len(text) <= most else text[: most - 1] + "…"


def _svg(figure: Figure, description: str) -> str:
    """The figure as an <svg> element that fills the width it is given."""
    figure.set_canvas(FigureCanvasSVG(figure))
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": description}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # glyphs that matplotlib's own font lacks: the page's font draws them
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)  # the same in every figure of the page
    width, height = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', text).groups()  # type: ignore[union-attr]
    return re.sub(
        r"<svg [^>]*>",
        f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{description}">',
        text,
        count=1,
    )
