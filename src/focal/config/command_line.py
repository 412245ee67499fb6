"""Build a `Config` from a command line: `--config FILE` and a flag per key."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, NoReturn, Optional

from focal.config.architectures import PAPER_TOP1, arch_defaults
from focal.config.device_target import fit_to_machine
from focal.config.help import add_key_flags, complete_for_shell, script_parser
from focal.config.loading import all_keys, load_config, read_keys, suggestion
from focal.config.schema import DEFAULT_ARCH, Config, ConfigError
from focal.config.yaml_files import CONFIG_FOLDER
from focal.errors import shown

logger = logging.getLogger("focal")


def config_from_command_line(
    argv: Sequence[str], description: str, defaults: Optional[Mapping[str, Any]] = None, tolerate_unknown: bool = False
) -> tuple[Config, list[str]]:
    """Build the configuration of a job from its command line.

    Without `--config`, the file is configs/<arch>.yaml of the repository. `device_target: auto` is resolved, see
    `fit_to_machine`.

    Args:
        argv: arguments without the program name: `--key value` or `--key=value`; `--batch-size` is `--batch_size`.
        description: the script's docstring, from which `--help` takes its first lines and its examples.
        defaults: values of keys that neither YAML nor flags give.
        tolerate_unknown: return unknown flags instead of refusing them, because cloud platforms add flags of their
            own. An empty flag then counts as omitted, and of a flag that is given twice, the last one counts.
            `run_openi: True`, as a flag or in the YAML file, has the same effect.

    Returns:
        The configuration, and the unknown arguments that were tolerated.

    Raises:
        ConfigError: see `load_config`; also for a flag that is unknown, empty, or given twice with different values.
    """
    flags, unknown = _make_parser(description).parse_known_args([_with_underscores(argument) for argument in argv])
    tolerant = tolerate_unknown or _runs_on_openi(vars(flags))
    if unknown and not tolerant:
        raise ConfigError(_unknown_argument(unknown[0]))
    return _load(_single_values(vars(flags), tolerant), defaults or {}), unknown


def config_and_arguments(
    argv: Sequence[str],
    description: str,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    defaults: Optional[Mapping[str, Any]] = None,
) -> tuple[Config, argparse.Namespace]:
    """As `config_from_command_line`, for a script that also has arguments of its own.

    Args:
        argv, description, defaults: see `config_from_command_line`.
        add_arguments: adds the script's flags and positional arguments, which may stand between the flags.

    Returns:
        The configuration, and the script's own arguments.

    Raises:
        ConfigError: see `config_from_command_line`.
    """
    given, own = parse_flags(argv, description, add_arguments)
    return _load(given, defaults or {}), own


def parse_flags(
    argv: Sequence[str], description: str, add_arguments: Callable[[argparse.ArgumentParser], None]
) -> tuple[dict[str, Any], argparse.Namespace]:
    """The keys that flags give, `config` among them, and the script's own arguments; see `config_and_arguments`.

    Raises:
        ConfigError: a flag is unknown, empty, or given twice with different values.
    """
    parser = _make_parser(description, add_arguments)
    parsed, unknown = parser.parse_known_intermixed_args([_with_underscores(argument) for argument in argv])
    if unknown:
        raise ConfigError(_unknown_argument(unknown[0]))
    keys = {"config", *all_keys()}
    given = _single_values({name: texts for name, texts in vars(parsed).items() if name in keys})
    own = {name: value for name, value in vars(parsed).items() if name not in keys}
    return given, argparse.Namespace(**own)


def config_for_model(given: Mapping[str, Any], model_keys: Mapping[str, Any]) -> Config:
    """The configuration for a model file that states its own settings.

    Precedence: defaults, the YAML file if `--config` names one, the model file, other flags.

    Args:
        given: the keys that flags give, from `parse_flags`.
        model_keys: what the model file says of itself; if that is nothing, the YAML file is as for training.

    Raises:
        ConfigError: see `load_config`; also if `--arch` is not the model's.
    """
    flags = dict(given)
    if not model_keys:
        return _load(flags, {})
    if flags.get("arch", model_keys["arch"]) != model_keys["arch"]:
        raise ConfigError(f"arch: {flags['arch']}, but the model file holds {model_keys['arch']}; omit --arch")
    config_file = flags.pop("config", None)
    file_keys = read_keys(Path(config_file)) if config_file is not None else {}
    return fit_to_machine(load_config({**file_keys, **model_keys}, flags))


def _runs_on_openi(given: Mapping[str, list[str]]) -> bool:
    """Whether the flags, or else the YAML file that they name, set `run_openi`."""
    texts: list[Any] = [text for text in given.get("run_openi", []) if text.strip()]
    files = {text for text in given.get("config", []) if text.strip()}
    if not texts and len(files) == 1:
        texts = [read_keys(Path(*files)).get("run_openi", False)]
    return any(str(text).strip().lower() == "true" for text in texts)


def _load(given: dict[str, Any], defaults: Mapping[str, Any]) -> Config:
    """The configuration of the flags `given`, which may name its file as `config`."""
    config_file = given.pop("config", None)
    path = _file_of_arch(given.get("arch", DEFAULT_ARCH)) if config_file is None else Path(config_file)
    file_keys = read_keys(path)
    _check_arch_flag(given, file_keys, path)
    return fit_to_machine(load_config({**defaults, **file_keys}, given))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def _make_parser(
    description: str, add_arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
) -> argparse.ArgumentParser:
    parser = script_parser(description, _Parser)
    add_arguments(parser)
    add_key_flags(parser)
    complete_for_shell(parser)
    return parser


def _with_underscores(argument: str) -> str:
    """`--batch-size=3` -> `--batch_size=3`; anything but the name of a flag stays as it is."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _single_values(given: Mapping[str, list[str]], tolerant: bool = False) -> dict[str, Any]:
    """The one value of each flag.

    Args:
        given: key -> the texts that its flag was given with.
        tolerant: leave empty flags out, and of several values take the last, each with a warning.
    """
    values = {}
    for name, texts in given.items():
        filled = [text for text in texts if text.strip()]
        if len(filled) < len(texts):
            empty = f"{name}: the flag --{name} has no value"
            if not tolerant:
                raise ConfigError(f"{empty}; give one, or omit the flag")
            logger.warning("%s; it counts as omitted", empty)
        if len(set(filled)) > 1:
            several = f"given {len(filled)} times, as {' and '.join(map(shown, list(dict.fromkeys(filled))[:3]))}"
            if not tolerant:
                raise ConfigError(f"{name}: {several}; omit all but one of these flags")
            logger.warning("%s: %s; the last one counts", name, several)
        if filled:
            values[name] = filled[-1]
    return values


def _unknown_argument(argument: str) -> str:
    if not argument.startswith("--"):
        return f"unexpected argument {argument!r}; settings are given as --key value"
    name = argument[2:].split("=")[0]
    return f"unknown flag --{name}{suggestion(name)}"


def _file_of_arch(arch: str) -> Path:
    if not CONFIG_FOLDER.is_dir():
        raise ConfigError(
            f"config: the file configs/{arch}.yaml is part of the repository, not of the installed package; give "
            "--config FILE"
        )
    return CONFIG_FOLDER / f"{arch}.yaml"


def _check_arch_flag(flags: Mapping[str, Any], file_keys: Mapping[str, Any], path: Path) -> None:
    """Refuse `--arch` with the file of another network, whose keys would take precedence over what the name implies."""
    arch = flags.get("arch")
    if arch not in PAPER_TOP1 or file_keys.get("arch", arch) == arch:
        return
    for name, implied in arch_defaults(arch, {}).items():
        if name in ("drop_path_rate", "image_size"):  # these belong to a recipe, which may suit many networks
            continue
        if name in file_keys and name not in flags and all_keys()[name].coerce(file_keys[name]) != implied:
            raise ConfigError(
                f"arch: {arch} has {name} {implied}, but {path} sets {file_keys[name]}; omit --config or --arch"
            )
