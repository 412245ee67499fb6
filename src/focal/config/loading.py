"""YAML + flags -> Config, and back to YAML. Precedence: defaults, YAML, flags."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import functools
import typing
from pathlib import Path
from typing import Any, Optional, Sequence, Union

import yaml

from focal.config.architectures import PAPER_TOP1, arch_defaults
from focal.config.checks import check_combinations
from focal.config.schema import DEFAULT_ARCH, SECTIONS, Config, ConfigError
from focal.config.values import coerce

CONFIG_FOLDER = Path(__file__).resolve().parents[3] / "configs"

# What other codebases call our keys: for the error message only.
_ALIASES = {
    "lr": "base_lr",
    "learning_rate": "base_lr",
    "img_size": "image_size",
    "in_chans": "in_channels",
    "in_channel": "in_channels",
    "workers": "num_parallel_workers",
    "num_workers": "num_parallel_workers",
    "wd": "weight_decay",
    "data_path": "data_url",
    "output": "train_url",
    "ckpt": "pretrained",
    "opt": "optimizer",
    "mixup": "mix_up",
}


@functools.cache
def _fields() -> dict[str, tuple[str, dataclasses.Field, Any]]:
    """Key -> (section, dataclass field, type)."""
    table: dict[str, tuple[str, dataclasses.Field, Any]] = {}
    for section, kind in SECTIONS.items():
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            assert field.name not in table, f"key {field.name} stands in two sections"
            table[field.name] = (section, field, hints[field.name])
    return table


def load_config(source: Union[str, Path, dict[str, Any]], overrides: Optional[dict[str, Any]] = None) -> Config:
    """Read, check and complete a configuration.

    Args:
        source: path of a YAML file, or a mapping of flat keys.
        overrides: flat keys that win over `source` (flags).

    Returns:
        A frozen `Config`: every key has its declared type and a legal value.

    Raises:
        ConfigError: unreadable file, unknown key, wrong type or range, impossible combination.
    """
    given = dict(source) if isinstance(source, dict) else _read_yaml(Path(source))
    given.update(overrides or {})
    for name in given:
        if name not in _fields():
            raise ConfigError(f"unknown key {name!r}{_suggestion(name)}")
    arch = coerce(_fields()["arch"][1], str, given.get("arch", DEFAULT_ARCH))
    values = {name: field.default for name, (_, field, _) in _fields().items()}
    values.update(arch_defaults(arch, given))
    for name, raw in given.items():
        _, field, hint = _fields()[name]
        values[name] = coerce(field, hint, raw)
    sections = {
        section: kind(**{field.name: values[field.name] for field in dataclasses.fields(kind)})
        for section, kind in SECTIONS.items()
    }
    config = Config(**sections)
    check_combinations(config)
    return config


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        near = difflib.get_close_matches(path.stem, [file.stem for file in CONFIG_FOLDER.glob("*.yaml")], n=1)
        hint = f"; did you mean configs/{near[0]}.yaml?" if near else ""
        raise ConfigError(f"config: cannot read {path} ({error.strerror}){hint}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"config: {path} is not a text file") from None
    try:
        loaded = yaml.load(text, Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        # PyYAML's constructors let through what int(), a date or a deep nesting raises.
        raise ConfigError(f"config: {path} is not YAML: {' '.join(str(error).split())}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"config: {path} must hold `key: value` lines, not a {type(loaded).__name__}")
    return loaded


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, where plain YAML silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.YAMLError(f"a key must be a word (line {key_node.start_mark.line + 1})")
            name = self.construct_object(key_node, deep=True)
            if name in seen:
                raise yaml.YAMLError(f"key {name!r} is given twice (line {key_node.start_mark.line + 1})")
            seen.add(name)
        return super().construct_mapping(node, deep)


def _suggestion(name: Any) -> str:
    normal = str(name).replace("-", "_")
    names = [_ALIASES[normal]] if normal in _ALIASES else []
    by_lower = {known.lower(): known for known in _fields()}
    names += [by_lower[match] for match in difflib.get_close_matches(normal.lower(), by_lower, n=1, cutoff=0.5)]
    return f"; did you mean {names[0]!r}?" if names else "; python train.py --help lists the keys"


def to_flat_dict(config: Config) -> dict[str, Any]:
    """The flat keys of `config`, in the order of the schema; `load_config` of it gives an equal `Config`."""
    flat: dict[str, Any] = {}
    for section in SECTIONS:
        for name, value in dataclasses.asdict(getattr(config, section)).items():
            flat[name] = list(value) if isinstance(value, tuple) else value
    return flat


def save_config(config: Config, path: Union[str, Path]) -> None:
    """Write the resolved configuration as YAML, one commented block per section."""
    lines = ["# Written by the job: every setting as it was resolved (defaults, YAML, flags).\n"]
    flat = to_flat_dict(config)
    for section, kind in SECTIONS.items():
        names = [field.name for field in dataclasses.fields(kind)]
        block = yaml.dump({name: flat[name] for name in names}, Dumper=_FlowListDumper, sort_keys=False, width=10**6)
        lines.append(f"\n# {section}\n{block}")
    Path(path).write_text("".join(lines), encoding="utf-8")


class _FlowListDumper(yaml.SafeDumper):
    """SafeDumper that writes a list on one line: `depths: [2, 2, 6, 2]`."""


_FlowListDumper.add_representer(
    list, lambda dumper, entries: dumper.represent_sequence("tag:yaml.org,2002:seq", entries, flow_style=True)
)


def for_one_process(config: Config) -> Config:
    """`config` for a script that uses one process whatever job the file was written by: an OUT/config.yaml of eight
    devices serves export.py and predict.py as well."""
    run = dataclasses.replace(config.run, device_num=1, node_num=1, node_rank=0)
    return dataclasses.replace(config, run=run)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise ConfigError(message)


def config_from_command_line(
    argv: Sequence[str], description: str, defaults: Optional[dict[str, Any]] = None, tolerate_unknown: bool = False
) -> tuple[Config, list[str]]:
    """Config of a command line: `--config FILE` (or `--arch NAME`, for configs/NAME.yaml) and a flag per key.

    Args:
        argv: arguments without the program name; `--key value` or `--key=value`, hyphens as good as underscores.
        description: first line of `--help`.
        defaults: keys the script sets unless YAML or flags do.
        tolerate_unknown: cloud platforms add flags of their own; they are then returned instead of refused. With
            `--run_openi True` on the line this holds by itself.

    Returns:
        The config, and the unknown arguments that were tolerated.

    Raises:
        ConfigError: see `load_config`; also for an unknown flag.
    """
    parser = _Parser(description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument(
        "--config", "--config_file", dest="config", metavar="FILE", help="YAML file; default: configs/<arch>.yaml"
    )
    for name, (_, field, _) in _fields().items():
        shown = field.default if field.default is not None else "none"
        help_text = f"{field.metadata['help']} (default: {shown})".replace("%", "%%")
        parser.add_argument(f"--{name}", metavar=name.upper(), help=help_text)
    flags, unknown = parser.parse_known_args([_normalise(argument) for argument in argv])
    given = vars(flags)
    path = given.pop("config", None)
    if unknown and not (tolerate_unknown or str(given.get("run_openi", "")).lower() == "true"):
        first = unknown[0]
        if not first.startswith("--"):
            raise ConfigError(f"unexpected argument {first!r}; settings are given as --key value")
        name = first[2:].split("=")[0]
        raise ConfigError(f"unknown flag --{name}{_suggestion(name).replace(chr(39), '')}")
    if path is None:
        path = CONFIG_FOLDER / f"{given.get('arch', DEFAULT_ARCH)}.yaml"
    yaml_keys = _read_yaml(Path(path))
    _check_arch_flag(given, yaml_keys, str(path))
    return load_config({**(defaults or {}), **yaml_keys}, given), unknown


def _check_arch_flag(flags: dict[str, Any], yaml_keys: dict[str, Any], path: str) -> None:
    """Refuse --arch with the YAML file of another network: its keys would win over what the name implies."""
    arch = flags.get("arch")
    if arch not in PAPER_TOP1 or yaml_keys.get("arch", arch) == arch:
        return
    for name, implied in arch_defaults(arch, {}).items():
        if name in ("drop_path_rate", "image_size"):  # part of a recipe, which fits many networks
            continue
        _, field, hint = _fields()[name]
        if name in yaml_keys and name not in flags and coerce(field, hint, yaml_keys[name]) != implied:
            raise ConfigError(
                f"arch: {arch} has {name} {implied}, but {path} sets {yaml_keys[name]}; leave out --config, or --arch"
            )


def _normalise(argument: str) -> str:
    """`--batch-size=3` -> `--batch_size=3`."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value
