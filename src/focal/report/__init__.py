"""One HTML page about one or several trainings, for after they have run. It needs jinja2 and matplotlib.

    runs.py         what a training has left in its folder
    mistakes.py     accuracy per class, confusions and worst mistakes, counted
    charts.py       curves and confusion matrices as SVG
    pictures.py     small copies of the images of val
    tables.py  curves.py  recognition.py    the parts of the page
    page.py         puts them into page.html, which holds everything it shows

Importing this package imports neither MindSpore nor the two packages.
"""

from focal.report.page import report_if_possible, write_report

__all__ = ["report_if_possible", "write_report"]
