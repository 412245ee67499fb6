"""House rules that any file of the package can break."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src" / "focal").rglob("*.py"))


def relative(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_files_stay_under_400_lines(path):
    assert len(path.read_text().splitlines()) <= 400


def classes_with_softmax():
    """Classes under src/focal/models whose code takes a softmax: attention, by any name."""
    found = []
    for path in sorted((ROOT / "src" / "focal" / "models").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                names = {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}
                names |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
                if any("softmax" in name.lower() for name in names):
                    found.append(node.name)
    return found


def test_only_the_one_attention_takes_a_softmax():
    assert classes_with_softmax() == ["SoftmaxGradient", "WindowedProducts"]  # both are parts of FocalAttention


def test_no_construct_asks_for_the_version():
    """No Cell's `construct` asks for the version; a version is a geometry and a bias."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name == "construct":
                words = {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}
                assert "focal_version" not in words, f"{relative(path)}:{node.lineno}"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_sources_do_not_print_and_run_on_python_39(path):
    tree = ast.parse(path.read_text(), feature_version=(3, 9))
    calls = [node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert "print" not in calls and "eval" not in calls and "exec" not in calls
    annotated = any(isinstance(node, (ast.FunctionDef, ast.AnnAssign)) for node in ast.walk(tree))
    if annotated:  # str | None in an annotation fails on Python 3.9 without it
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
        assert "annotations" in imported


def test_the_document_gives_the_order_of_a_step_in_the_words_of_the_code():
    """The order of a training step is stated once and followed; docs/training.md quotes it."""
    docstring = (ROOT / "src" / "focal" / "trainers" / "train_one_step.py").read_text().split('"""')[1]
    order = "".join(line for line in docstring.splitlines(keepends=True) if line.startswith("    "))
    assert order.count("->") > 5
    assert f"\n\n{order}\n" in (ROOT / "docs" / "training.md").read_text()


def test_importing_the_package_does_nothing():
    """No command line is read, nothing is printed, no device is touched, and focal.config needs no MindSpore."""
    code = (
        "import sys; sys.argv = ['x', '--no-such-flag']; import focal.config; assert 'mindspore' not in sys.modules; "
        "import mindspore as ms; before = ms.get_context('mode'); import focal.models, focal.checkpoint.convert; "
        "assert ms.get_context('mode') == before"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT / "src", timeout=60)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
