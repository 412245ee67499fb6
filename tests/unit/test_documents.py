"""The documents: links lead somewhere, commands exist, and the Chinese pages say what the English ones say."""

import re
from pathlib import Path

import pytest
import yaml

from focal.config.loading import all_keys

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
TRANSLATED = ["README", "docs/cloud"]
# migration.md quotes commands of other repositories; tools/scaling makes its flags from the fields of a dataclass.
UNCHECKED = {"docs/migration.md", "docs/scaling.md"}


def relative(path):
    return str(path.relative_to(ROOT))


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_to_files_and_headings(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link or link.startswith("mailto:"):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{relative(page)}: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{relative(page)}: {link}"


def commands(text):
    """(script, arguments) of each command of ours in a text."""
    return re.findall(r"\bpython3? ((?:\w+/)*\w+\.py|tools/\w+)\b([^`\n]*)", text)


@pytest.mark.parametrize("page", [page for page in PAGES if relative(page) not in UNCHECKED], ids=relative)
def test_commands_name_scripts_flags_and_configs_that_exist(page):
    for script, arguments in commands(page.read_text(encoding="utf-8")):
        path = ROOT / script
        assert path.exists(), f"{relative(page)}: {script}"
        sources = [path] if path.is_file() else list(path.glob("*.py"))
        if script == "scripts/benchmark.py":
            sources += (ROOT / "tools" / "benchmark").glob("*.py")
        own = set(re.findall(r'"--(\w+)"', "".join(source.read_text(encoding="utf-8") for source in sources)))
        for flag in re.findall(r"--([A-Za-z_]+)", arguments.split(" #")[0]):
            assert flag in own | {"config", "help", *all_keys()}, f"{relative(page)}: {script} --{flag}"
        for config in re.findall(r"configs/\w+\.yaml", arguments):
            assert config == "configs/X.yaml" or (ROOT / config).is_file(), f"{relative(page)}: {config}"


@pytest.mark.parametrize("name", TRANSLATED)
def test_the_chinese_page_has_the_headings_commands_and_tables_of_the_english_one(name):
    english, chinese = ((ROOT / f"{name}{suffix}.md").read_text(encoding="utf-8") for suffix in ("", "_CN"))
    shape = [[len(marks) for marks in re.findall(r"^(#+) ", text, re.MULTILINE)] for text in (english, chinese)]
    assert shape[0] == shape[1]
    code = [re.findall(r"^ +((?:python|bash|pip|import|config|network) .*?)(?:  #.*)?$", text, re.MULTILINE)
            for text in (english, chinese)]  # fmt: skip
    assert code[0] == code[1]
    rows = [[row.count("|") for row in re.findall(r"^ *\|.*\|$", text, re.MULTILINE)] for text in (english, chinese)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("name", TRANSLATED)
def test_translated_pages_link_to_each_other(name):
    file = Path(name).name
    assert f"]({file}_CN.md)" in (ROOT / f"{name}.md").read_text(encoding="utf-8")
    assert f"]({file}.md)" in (ROOT / f"{name}_CN.md").read_text(encoding="utf-8")


def test_the_citation_names_the_version_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert f'version = "{citation["version"]}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
