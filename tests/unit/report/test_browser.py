"""The page in a browser: opened in headless Chromium, where one is installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from focal.report.page import missing_packages, write_report

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason=f"no browser found: none of {', '.join(BROWSERS)}"),
    pytest.mark.skipif(bool(missing_packages()), reason="reports need jinja2 and matplotlib: pip install '.[report]'"),
]
HOSTILE = ("<script>document.title='taken over'</script>", "<img src=x onerror=alert(1)>" * 9, "a_very_long_name" * 12)
# Says what only a browser knows, in the page's last element.
MEASURE = """<pre id="measured"></pre><script>
addEventListener("load", () => document.getElementById("measured").textContent = JSON.stringify({
  title: document.title,
  wider: document.documentElement.scrollWidth - innerWidth,
  charts: [...document.querySelectorAll(".charts svg")].map(svg => svg.getBoundingClientRect().height),
  pictures: [...document.images].map(image => image.naturalWidth),
  unstyled: getComputedStyle(document.querySelector("td.number")).textAlign !== "right",
}));
</script></body>"""


def browse(page, *options):
    """What the browser says about a page; its windows are closed when this returns."""
    line = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", *options, page.as_uri()]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, check=True)


def console(done):
    """Messages of the page's console: blocked addresses, errors of scripts."""
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture
def report(tmp_path, make_run, make_predictions, image_folder):
    """A page about two runs, one of which has pictures of the mistakes, and hostile names of classes."""
    predictions = make_predictions(HOSTILE)
    runs = [make_run(tmp_path / f"run_{number}_{'x' * 40}", predictions, base_lr=number) for number in (1, 2)]
    write_report(runs, tmp_path / "report.html", str(image_folder))
    return tmp_path / "report.html"


@pytest.mark.parametrize("width", [1280, 500])
def test_everything_is_drawn_and_nothing_is_wider_than_the_window(report, width):
    text = report.read_text()
    measured_page = report.with_name("measured.html")
    text, replaced = re.subn(r"default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';", text)
    assert replaced == 1
    measured_page.write_text(text.replace("</body>", MEASURE))
    done = browse(measured_page, f"--window-size={width},900", "--dump-dom")
    found = json.loads(re.search(r'<pre id="measured">(.*?)</pre>', done.stdout, re.DOTALL).group(1))
    assert found["title"].startswith("Training report: run_1"), "a class name has run as a script"
    assert found["wider"] <= 0 and not found["unstyled"]
    assert len(found["charts"]) == 8 and min(found["charts"]) > 100
    assert len(found["pictures"]) == 8 and min(found["pictures"]) > 0
    assert console(done) == []


def test_the_page_as_it_is_asks_for_nothing_and_fills_a_picture(report):
    picture = report.with_name("page.png")
    done = browse(report, "--window-size=1200,2400", f"--screenshot={picture}")
    assert console(done) == []
    pixels = np.asarray(Image.open(picture).convert("RGB")).reshape(-1, 3)
    orange = (pixels == (0xD5, 0x5E, 0x00)).all(axis=1).sum()
    assert 500 < orange < 0.1 * len(pixels), "curves of the second run, which cover the same ones of the first"
    assert 0.5 < (pixels == 255).all(axis=1).mean() < 0.98, "a page that is neither empty nor dark"


def test_a_page_that_runs_scripts_would_be_noticed(tmp_path):
    """The measurement itself: a console message and a page that is too wide are seen."""
    page = tmp_path / "bad.html"
    wide = "<table><td class=number></table><div style='width:3000px'>x</div><script>nonsense()</script>"
    page.write_text(f"<body>{wide}{MEASURE}")
    done = browse(page, "--window-size=800,600", "--dump-dom")
    found = json.loads(re.search(r'<pre id="measured">(.*?)</pre>', done.stdout, re.DOTALL).group(1))
    assert found["wider"] > 1000 and found["unstyled"] and len(console(done)) == 1
