"""Read configuration files, following their `base:` keys, and write them."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from focal.config.schema import ConfigError
from focal.errors import one_line, shown
from focal.files import write_text

# The published files. This folder exists in a checkout of the repository, but not beside an installed package.
CONFIG_FOLDER = Path(__file__).resolve().parents[3] / "configs"
_MOST_BYTES = 100_000  # of a file; one with every key takes 4 kB


def read_chain(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Read a YAML file and, one after the other, the files that `base:` names.

    Returns:
        The path and the keys of each file, the innermost base first, without the key `base`. A key of a later file
        takes precedence over the same key of an earlier one.

    Raises:
        ConfigError: a file cannot be read, is not a YAML mapping, or is its own base.
    """
    chain = [(path, _read_mapping(path))]
    while "base" in chain[-1][1]:
        path, keys = chain[-1]
        base = _find_base(keys.pop("base"), [earlier for earlier, _ in chain])
        chain.append((base, _read_mapping(base)))
    return chain[::-1]


def write_yaml(path: Path, comment: str, blocks: Mapping[str, Mapping[str, Any]]) -> None:
    """Write `blocks` of keys, each below its name as a comment; `comment` is the first line of the file."""
    lines = [f"# {comment}\n"]
    for name, keys in blocks.items():
        # A width without limit keeps each key on a line of its own.
        lines.append(f"\n# {name}\n{yaml.dump(dict(keys), Dumper=_FlowListDumper, sort_keys=False, width=10**6)}")
    write_text(path, "".join(lines))


def _find_base(base: Any, chain: list[Path]) -> Path:
    """The file that `base` names in the last file of `chain`: a path relative to that file, or a name in configs/."""
    trail = " -> ".join(str(path) for path in chain)
    if not isinstance(base, str) or not base:
        raise ConfigError(f"base: {shown(base)} in {trail} is not the name of a YAML file")
    candidates = [chain[-1].parent / base, CONFIG_FOLDER / base, CONFIG_FOLDER / f"{base}.yaml"]
    found = next((path for path in candidates if os.path.isfile(path)), None)
    if found is None:
        raise ConfigError(
            f"base: {trail} -> {base} does not exist; give a path relative to {chain[-1].parent}, or the name of a "
            "file in the repository's configs/"
        )
    if found.resolve() in [path.resolve() for path in chain]:
        raise ConfigError(f"base: {trail} -> {found} is a cycle; remove one of these base: lines")
    return found


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL character
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"config: cannot read {path} ({reason}){_nearest_file(path)}") from None
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"config: {path} has more than {_MOST_BYTES} bytes; is it a file of settings?")
    try:
        loaded = yaml.load(content.decode("utf-8-sig"), Loader=_SettingsLoader)
    except UnicodeDecodeError:
        raise ConfigError(f"config: {path} is not a text file") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        # PyYAML does not wrap what int(), datetime, unusual tags or deep nesting raise.
        raise ConfigError(f"config: {path} is not valid YAML: {one_line(error)}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"config: {path} must consist of `key: value` lines, but is a {type(loaded).__name__}")
    return loaded


def _nearest_file(path: Path) -> str:
    names = difflib.get_close_matches(path.stem, [file.stem for file in CONFIG_FOLDER.glob("*.yaml")], n=1)
    return f"; did you mean configs/{names[0]}.yaml?" if names else ""


class _SettingsLoader(yaml.SafeLoader):
    """A SafeLoader that refuses duplicate keys, of which plain YAML silently takes the last.

    Numbers are decimal: YAML 1.1 reads `010` as 8 and `1:30` as 90. Here such words stay text, from which the type of
    the key makes 10 and an error.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in ("bool", "null")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.YAMLError(f"a key must be a word (line {key_node.start_mark.line + 1})")
            name = self.construct_object(key_node, deep=True)
            if name in seen:
                raise yaml.YAMLError(f"key {shown(name)} is given twice (line {key_node.start_mark.line + 1})")
            seen.add(name)
        return super().construct_mapping(node, deep)


_SettingsLoader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9]{0,99})$"), list("-+0123456789")
)
_SettingsLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$"), list("-+.0123456789")
)
# The same for a number with a tag: `!!int 010`.
_SettingsLoader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(loader.construct_scalar(node)))
_SettingsLoader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: float(loader.construct_scalar(node)))


class _FlowListDumper(yaml.SafeDumper):
    """A SafeDumper that writes a list on one line: `depths: [2, 2, 6, 2]`."""


_FlowListDumper.add_representer(
    list, lambda dumper, entries: dumper.represent_sequence("tag:yaml.org,2002:seq", entries, flow_style=True)
)
