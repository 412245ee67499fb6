"""The `--help` of scripts: a short usage line, keys by section with their defaults, and examples at the end."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
from typing import Any

from focal.config.describe import describe_placeholder, describe_value
from focal.config.loading import Key, all_keys
from focal.config.schema import SECTIONS

_DEFAULTS = "Defaults are shown in brackets; the YAML file and the name of a published model set others (docs/keys.md)."


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of descriptions and examples, and leaves room for the names of keys."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34)


def split_docstring(docstring: str) -> tuple[str, str]:
    """Split a script's docstring into a description and its example commands.

    Commands are indented lines, and what follows the colon of a first line "Does this: python script.py ...".

    Returns:
        Description and examples; both may be empty.
    """
    summary, _, rest = docstring.strip().partition("\n")
    command = re.fullmatch(r"(.*): (python \S+\.py.*)", summary)
    text, examples = [f"{command[1]}." if command else summary], [f"  {command[2]}"] if command else []
    for line in rest.rstrip().splitlines():
        if line.startswith("    "):
            examples.append(line[2:])
        else:
            text.append(line)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(text)).strip(), "\n".join(examples)


def script_parser(
    docstring: str, parser_class: type[argparse.ArgumentParser] = argparse.ArgumentParser
) -> argparse.ArgumentParser:
    """A parser whose `--help` shows the description and the examples of a script's docstring."""
    description, examples = split_docstring(docstring)
    return parser_class(
        description=description,
        epilog=f"examples:\n{examples}" if examples else None,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )


def add_key_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--config` and a flag per key, grouped by section, after the script's own arguments.

    Keys that are not given are absent from the result; the others have a list of the texts that were given. The usage
    line names the script's own arguments only.
    """
    own = parser.format_usage().partition(" ")[2].split()
    parser.usage = " ".join([*own, "[--config FILE] [--KEY VALUE ...]"]).replace("%", "%%")
    parser.description = f"{parser.description}\n\n{_DEFAULTS}"
    general = parser.add_argument_group("configuration", argument_default=argparse.SUPPRESS)
    general.add_argument(
        "--config", "--config_file", dest="config", action="append", metavar="FILE",
        help="YAML file (default: configs/<arch>.yaml)",
    )  # fmt: skip
    keys = all_keys()
    for name, section in SECTIONS.items():
        group = parser.add_argument_group(name, section.__doc__, argument_default=argparse.SUPPRESS)
        for field in dataclasses.fields(section):
            key = keys[field.name]
            help_text = f"{field.metadata['help']} [{describe_value(field.default)}]".replace("%", "%%")
            flag = group.add_argument(
                f"--{field.name}", action="append", metavar=describe_placeholder(key), help=help_text
            )
            _offer_values(flag, key)


def complete_for_shell(parser: argparse.ArgumentParser) -> None:
    """Answer the shell and exit, if it asks for completions; argcomplete, an optional package, is how it asks."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)


def _offer_values(flag: argparse.Action, key: Key) -> None:
    """Tell argcomplete the values of a key. `choices` of argparse would check them, and with another message."""
    values = key.field.metadata.get("choices", (True, False) if key.type is bool else ())
    if values:
        completed: Any = flag
        completed.completer = lambda **_: [str(value) for value in values]
