"""The page: it holds everything itself, says what is missing, and shows hostile names as what they are."""

from __future__ import annotations

import dataclasses
import html
import logging
import re

import pytest

from focal.errors import UserError
from focal.report import page as page_module
from focal.report import report_if_possible, write_report

needs_packages = pytest.mark.skipif(
    bool(page_module.missing_packages()), reason="reports need jinja2 and matplotlib: pip install '.[report]'"
)
HOSTILE = ("<script>alert(1)</script>", '"><img src=http://evil/x.png onerror=alert(1)>', "{{ 7 * 7 }} \udcff 数字 $x$")

PARTS = (
    "Results", "Curves", "Loss", "Top-1 accuracy", "Top-5 accuracy", "Learning rate", "Gradient norm", "Loss scale",
    "Throughput", "Waiting for data", "Accuracy per class", "Most confused pairs", "Confusion matrix", "Worst mistakes",
    "Settings", "Machine",
)  # fmt: skip


def text_of(folder, *folders, data_folder=None):
    output = folder / "page.html"
    write_report([folder, *folders], output, data_folder)
    return output.read_text(encoding="utf-8")


@needs_packages
def test_a_page_has_every_part_and_needs_nothing_else(tmp_path, make_run, make_predictions, image_folder):
    text = text_of(make_run(tmp_path / "first", make_predictions()), data_folder=str(image_folder))
    for part in PARTS:
        assert f">{part}<" in text, part
    assert text.count("data:image/jpeg;base64,") == 4, "a picture of each mistake"
    assert "4 of 9 images of val are taken for another class by the EMA weights of epoch 2, top-1 55.56 %" in text
    addresses = re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?([^"\') >]+)', text)
    assert addresses and all(address.startswith(("data:image/", "#")) for address in addresses)
    assert "<script" not in text and "default-src 'none'" in text and "@import" not in text


@needs_packages
def test_hostile_names_are_shown_as_text(tmp_path, make_run, make_predictions):
    run = make_run(tmp_path / "<b onclick=x>", make_predictions(HOSTILE), arch="</td><script>")
    text = text_of(run)
    assert "<script" not in text and "<b onclick" not in text and not re.search(r"<img[^>]*evil", text)
    assert "{{ 7 * 7 }}" in text and "49 ?" not in text
    for name in (HOSTILE[0], HOSTILE[1], "</td><script>", "<b onclick=x>"):
        assert name in html.unescape(text)


@needs_packages
def test_missing_predictions_and_pictures_are_said(tmp_path, make_run, make_predictions):
    text = html.unescape(text_of(make_run(tmp_path / "first")))
    assert "There is no predictions.npz" in text and "Worst mistakes" not in text and "Top-1 accuracy" in text
    run = make_run(tmp_path / "second", make_predictions(), data_url="/home/somebody/secret/place/data")
    text = html.unescape(text_of(run))
    assert "The pictures are missing" in text and "…/place/data" in text and "Worst mistakes" in text
    assert "somebody" not in text and str(tmp_path) not in text


@needs_packages
def test_other_images_than_those_evaluated_are_not_shown(tmp_path, make_run, make_predictions, image_folder):
    changed = dataclasses.replace(make_predictions(), names=("val/a/of_before.jpg",) * 9)
    text = html.unescape(text_of(make_run(tmp_path / "first", changed), data_folder=str(image_folder)))
    assert "the images have changed" in text and "data:image/jpeg" not in text


@needs_packages
def test_a_training_that_has_only_begun_has_a_page(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    text = text_of(tmp_path)
    assert "There has been no evaluation yet." in text and ">Curves<" not in text


@needs_packages
def test_several_runs_stand_side_by_side(tmp_path, make_run, make_predictions):
    other = dataclasses.replace(make_predictions(), classes=make_predictions().classes[:, ::-1])
    first = make_run(tmp_path / "first", make_predictions(), base_lr=0.001, old_key=3)
    second = make_run(tmp_path / "second", other, base_lr=0.002)
    text = text_of(first, second)
    rows = dict(re.findall(r'<th scope="row">(.*?)</th>(.*?)</tr>', text))
    assert re.findall(r"<td[^>]*>(.*?)</td>", rows["base_lr"]) == ["0.001", "0.002"]
    assert re.findall(r"<td[^>]*>(.*?)</td>", rows["old_key"]) == ["3", "–"], "a key that this version does not know"
    assert [cell for cell in re.findall(r"<td[^>]*>(.*?)</td>", rows["a"]) if cell[:1].isdigit()] == [
        "4",
        "50.00",
        "50.00",
    ]
    differing = text[text.index("Settings in which the runs differ") : text.index("<details>")]
    assert "base_lr" in differing and "batch_size" not in differing
    assert "Mistakes of first" in text and "Mistakes of second" in text
    assert text.count(">Accuracy per class<") == 1 and text.count('class="classes"') == 1


@needs_packages
def test_runs_with_other_classes_have_tables_of_their_own(tmp_path, make_run, make_predictions):
    second = make_run(tmp_path / "second", make_predictions(("x", "y", "z")))
    text = text_of(make_run(tmp_path / "first", make_predictions()), second)
    assert text.count('class="classes"') == 2


@needs_packages
def test_of_many_classes_only_both_ends_are_listed(tmp_path, make_run, make_predictions):
    count = 51  # one more than are listed and drawn
    one = make_predictions(tuple(f"class_{number:02d}" for number in range(count)))
    labels = one.labels[[0]].repeat(count)
    labels[:] = range(count)
    taken_for = (labels[:, None] + (labels == 7)[:, None]) % count  # all right but class_07
    many = dataclasses.replace(
        one, samples=labels, names=("val/x",) * count, labels=labels, label_probabilities=labels / 100,
        classes=taken_for, probabilities=labels[:, None] / 100,
    )  # fmt: skip
    text = text_of(make_run(tmp_path / "first", many))
    assert f"the lowest and the highest of {count} classes" in text and ">11 more<" in text
    assert "There is a confusion matrix for up to 50 classes" in text and "class_25" not in text
    assert text.index(">class_07<") < text.index(">class_00<"), "the lowest first"


def test_a_missing_package_is_one_line_with_the_command(tmp_path, make_run, monkeypatch, caplog):
    monkeypatch.setattr(page_module, "PACKAGES", ("no_such_package",))
    run = make_run(tmp_path / "first")
    with pytest.raises(UserError, match=r"^report: no_such_package not found; pip install '.\[report\]'$"):
        write_report([run], tmp_path / "page.html")
    caplog.set_level(logging.INFO, logger="focal")
    report_if_possible(str(run), str(tmp_path))
    assert [record.levelname for record in caplog.records] == ["INFO"] and "pip install '.[report]'" in caplog.text
    assert not (run / "report.html").exists()


@needs_packages
def test_after_a_training_the_report_lies_in_its_folder_and_a_failure_is_only_logged(tmp_path, make_run, caplog):
    run = make_run(tmp_path / "first")
    report_if_possible(str(run), str(tmp_path))
    assert (run / "report.html").is_file()
    (run / "metrics.jsonl").unlink()
    report_if_possible(str(run), str(tmp_path))
    assert "no report.html (UserError: report: " in caplog.text


@needs_packages
def test_an_output_that_cannot_be_written_is_named(tmp_path, make_run):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="output: .*page.html cannot be written"):
        write_report([make_run(tmp_path / "first")], tmp_path / "file" / "page.html")
