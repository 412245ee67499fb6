"""The quickstart notebook: committed without outputs, and its cells run in order, as a plain Python runs them."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.integration.digits import write_digits

REPOSITORY = Path(__file__).resolve().parents[2]
NOTEBOOK = REPOSITORY / "notebooks" / "quickstart.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
# Of the notebook's network, the stage that it looks at.
FIRST_STAGE = ["--depths", [1], "--num_heads", [1], "--focal_levels", [2], "--focal_windows", [5],
               "--expand_sizes", [2], "--focal_stages", [0]]  # fmt: skip
SOURCES = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]


def execute(source: str, names: dict[str, Any]) -> Any:
    """Run a cell; returns the value of its last line if that is an expression, which a notebook would show."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, NOTEBOOK.name, "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), NOTEBOOK.name, "eval"), names)


def test_the_notebook_has_ten_cells_and_no_outputs() -> None:
    assert [cell["cell_type"] for cell in CELLS] == ["markdown", "code"] * 5
    for cell in CELLS[1::2]:
        assert cell["outputs"] == [] and cell["execution_count"] is None


def test_the_links_of_the_notebook_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)#\s]+)", "".join("".join(cell["source"]) for cell in CELLS))
    assert links
    for link in links:
        assert (NOTEBOOK.parent / link).is_file(), link


@pytest.mark.slow
def test_the_cells_make_digits_train_look_and_predict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(NOTEBOOK.parent)  # where Jupyter starts a notebook
    setup, digits, train, look, predict = SOURCES
    names: dict[str, Any] = {}
    execute(setup, names)
    assert names["REPOSITORY"] == REPOSITORY
    names["FOLDER"] = tmp_path
    names["TRAINING"] = ["--epochs", 2, "--warmup_length", 1, "--cool_length", 0, "--report", False, *FIRST_STAGE]
    write_digits(tmp_path / "digits", train=128, val=40, classes=10, size=64)  # few, and make_digits.py leaves them

    batch = execute(digits, names)
    assert isinstance(batch, Image.Image) and batch.width > 8 * 64
    execute(train, names)
    capsys.readouterr()
    attention = execute(look, names)
    assert isinstance(attention, Image.Image) and attention.width > 1000
    shown = capsys.readouterr().out
    assert re.findall(r"^epoch +(\d+): loss \d\.\d{3}, top-1 ", shown, re.MULTILINE) == ["1", "2"]
    sheet = execute(predict, names)
    shown = capsys.readouterr().out
    right, held_out = map(int, re.search(r"(\d+) of (\d+) held-out digits are right", shown).groups())
    mistakes = re.findall(r"^(\d) taken for (\d) \(", shown, re.MULTILINE)
    assert held_out == 40 and len(mistakes) == min(8, held_out - right)
    assert all(truth != taken for truth, taken in mistakes)
    assert sheet.getextrema() != (255, 255)  # pictures of the mistakes are on it


def test_a_script_that_fails_stops_the_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    names: dict[str, Any] = {}
    execute(SOURCES[0], names)
    with pytest.raises(RuntimeError, match="list_models.py ended with exit code 2"):
        names["run"]("scripts/list_models.py", "--no_such_flag", True)
