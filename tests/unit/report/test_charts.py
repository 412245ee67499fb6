"""Charts as SVG inside a page."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="reports need matplotlib: pip install '.[report]'")

from focal.report.charts import POINTS, Curve, condensed, line_chart, matrix_chart, shortened  # noqa: E402

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg):
    root = ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))
    return [element.text for element in root.iter(f"{SVG}text")]


def curve(y, label="raw", **options):
    return Curve(label, list(range(1, len(y) + 1)), y, "#0072b2", **options)


def test_long_curves_become_means_between_lowest_and_highest():
    x, y = np.arange(3 * POINTS, dtype=np.float64), np.tile([0.0, 1.0, 5.0], POINTS)
    mean_x, mean, low, high = condensed(x, y)
    assert len(mean) == POINTS and (mean == 2).all() and (low == 0).all() and (high == 5).all()
    assert mean_x[:2].tolist() == [1, 4]
    for count in (1, POINTS - 1, POINTS, POINTS + 1, 5 * POINTS - 1):
        x = np.arange(count, dtype=np.float64)
        mean_x, mean, _, _ = condensed(x, x)
        assert len(mean) == min(count, POINTS) and (mean_x == mean).all() and (np.diff(mean) > 0).all()


def test_a_chart_names_its_axes_and_lines_as_text():
    words = texts(line_chart([curve([1, 2]), curve([2, 3], "EMA", style="--")], "top-1 of val (%)"))
    assert {"epoch", "top-1 of val (%)", "raw", "EMA"} <= set(words)
    assert "raw" not in texts(line_chart([curve([1, 2], "")], "loss"))


def test_logarithmic_axes_have_plain_numbers_and_are_used_where_they_help():
    assert "16,384" in texts(line_chart([curve([1024.0, 16384.0])], "loss scale", "log2"))
    assert {"0.1", "1", "10"} <= set(texts(line_chart([curve([0.05, 20.0])], "norm", "log")))
    assert not any("math" in word for word in texts(line_chart([curve([1.0, 2.0])], "norm", "log")))
    assert "0" in texts(line_chart([curve([0.0, 5.0])], "norm", "log", from_zero=True))


def test_the_matrix_shows_counts_of_few_classes_and_escapes_their_names():
    names = ["<b>$x$", "quite \udcff unusual", "a" * 50]
    svg = matrix_chart(np.array([[17, 0, 0], [0, 18, 3], [0, 0, 0]]), names)
    words = texts(svg)
    assert {"17", "18", "3", "<b>$x$", "predicted class", "true class"} <= set(words) and "0" not in words
    assert "a" * 21 + "…" in words and "<b>" not in svg
    many = texts(matrix_chart(np.full((50, 50), 7), [f"class {number}" for number in range(50)]))
    assert "7" not in many and "class 49" in many


def test_a_long_text_is_shortened():
    assert shortened("a\nb", 9) == "a b" and shortened("abcdef", 4) == "abc…"
