"""`--help` is short at the top, complete below, and ends with examples; docs/keys.md holds what the schema declares."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from focal.config.describe import describe_placeholder, describe_range, describe_type, describe_value
from focal.config.help import script_parser, split_docstring
from focal.config.loading import all_keys
from focal.config.schema import SECTIONS
from tools import keys_document

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = [path.relative_to(ROOT) for path in (*ROOT.glob("*.py"), *(ROOT / "scripts").glob("*.py"))]


def help_of(script):
    command = [sys.executable, script, "--help"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def test_help_has_a_short_usage_keys_by_section_with_defaults_and_examples():
    text = help_of("train.py")
    usage, rest = text.split("\n\n", 1)
    assert usage == "usage: train.py [-h] [--config FILE] [--KEY VALUE ...]"
    keys, examples = rest.split("\nexamples:\n")
    assert [name for name in re.findall(r"^(\w+):$", keys, re.MULTILINE) if name in SECTIONS] == list(SECTIONS)
    words = " ".join(keys.split())
    for name, key in all_keys().items():
        assert f"--{name} {describe_placeholder(key)} " in words
        assert f"{' '.join(key.field.metadata['help'].split())} [{describe_value(key.field.default)}]" in words
    assert examples.count("  python train.py --") >= 3


def test_the_usage_line_names_a_scripts_own_arguments():
    usage = help_of("scripts/show_batch.py").split("\n\n")[0]
    assert "[--step STEP] [--config FILE] [--KEY VALUE ...]" in usage and "--batch_size" not in usage


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_every_script_that_has_arguments_ends_its_help_with_an_example(script):
    source = (ROOT / script).read_text(encoding="utf-8")
    if "sys.argv" not in source and "_parser(" not in source and "run_job" not in source:
        pytest.skip("it takes no arguments from people")
    description, examples = split_docstring(source.split('"""')[1])
    assert description and f"  python {script} " in f"{examples} ".replace("\n", " \n"), f"{script} shows no command"


def test_examples_of_a_docstring_are_its_commands():
    docstring = "Do this: python scripts/x.py A\n\nIt is quick.\n\n    python scripts/x.py B\n\nIt is 100 % safe.\n"
    description, examples = split_docstring(docstring)
    assert description == "Do this.\n\nIt is quick.\n\nIt is 100 % safe."
    assert examples == "  python scripts/x.py A\n  python scripts/x.py B"
    assert "100 % safe" in script_parser(docstring).format_help()


@pytest.mark.parametrize(
    ("line", "expected"),
    [("python train.py --amp", {"--amp_level"}), ("python train.py --amp_level ", {"O0", "O1", "O2", "O3", "bf16"}),
     ("python train.py --ape ", {"True", "False"})],
)  # fmt: skip
def test_the_shell_completes_keys_and_values(line, expected, tmp_path):
    pytest.importorskip("argcomplete", reason="shell completion needs the optional package argcomplete")
    answer = tmp_path / "answer"  # argcomplete writes to this file instead of descriptor 8
    asked = {"_ARGCOMPLETE": "2", "_ARGCOMPLETE_SHELL": "bash", "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
             "_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "COMP_LINE": line, "COMP_POINT": str(len(line)),
             "COMP_TYPE": "9", "IFS": " "}  # fmt: skip
    subprocess.run([sys.executable, "train.py"], env={**os.environ, **asked}, cwd=ROOT, timeout=60, check=True)
    assert set(answer.read_text().split()) == expected


@pytest.mark.parametrize(
    ("name", "kind", "values"),
    [("batch_size", "integer", "≥ 1"), ("mlp_ratio", "number", "> 0"), ("drop_rate", "number", "0 ≤ x < 1"),
     ("image_std", "list of numbers", "3 entries, > 0"), ("qk_scale", "number or none", ""),
     ("image_size", "integer or list of integers", "≥ 1"), ("amp_level", "text", "O0, O1, O2, O3, bf16"),
     ("crop_ratio", "number", "0 < x ≤ 1"), ("ape", "True or False", "")],
)  # fmt: skip
def test_type_and_range_of_a_key_in_words(name, kind, values):
    key = all_keys()[name]
    assert (describe_type(key), describe_range(key)) == (kind, values)


def test_the_reference_of_keys_is_up_to_date():
    assert keys_document.DOCUMENT.read_text(encoding="utf-8") == keys_document.document(), (
        "run python tools/keys_document.py"
    )
