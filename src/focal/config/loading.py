"""Build a `Config` from a YAML file or a mapping, and turn one back into YAML."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

from focal.config.architectures import arch_defaults
from focal.config.checks import check_combinations
from focal.config.schema import DEFAULT_ARCH, SECTIONS, Config, ConfigError
from focal.config.values import coerce
from focal.config.yaml_files import read_chain, write_yaml
from focal.errors import shown

# Names that other codebases use for our keys, to suggest the right one.
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
    "checkpoint_path": "pretrained",
    "drop_path": "drop_path_rate",
    "bce_loss": "loss",
}


class Key(NamedTuple):
    """A key's declaration and resolved type."""

    field: dataclasses.Field[Any]
    type: Any

    def coerce(self, raw: Any) -> Any:
        """Return `raw` as a legal value of this key, or raise `ConfigError`."""
        return coerce(self.field, self.type, raw)


@functools.cache
def all_keys() -> dict[str, Key]:
    """Every key by name, in the order of the schema."""
    table: dict[str, Key] = {}
    for section in SECTIONS.values():
        types = typing.get_type_hints(section)
        for field in dataclasses.fields(section):
            assert field.name not in table, f"two sections declare the key {field.name}"
            table[field.name] = Key(field, types[field.name])
    return table


def load_config(source: Union[str, Path, Mapping[str, Any]], overrides: Optional[Mapping[str, Any]] = None) -> Config:
    """Load, complete and check a configuration.

    Args:
        source: path of a YAML file, or a mapping of flat keys.
        overrides: flat keys that take precedence over `source`, such as flags.

    Returns:
        A frozen `Config` in which every key has its declared type and a legal value.

    Raises:
        ConfigError: a file cannot be read, a key is unknown, a value has the wrong type or is out of range, or a
            combination of settings cannot work.
    """
    given = dict(source) if isinstance(source, Mapping) else read_keys(Path(source))
    given.update(overrides or {})
    _check_names(given)
    keys = all_keys()
    values = {name: key.field.default for name, key in keys.items()}
    values.update(arch_defaults(keys["arch"].coerce(given.get("arch", DEFAULT_ARCH)), given))
    values.update({name: keys[name].coerce(raw) for name, raw in given.items()})
    sections = {
        name: section(**{field.name: values[field.name] for field in dataclasses.fields(section)})
        for name, section in SECTIONS.items()
    }
    config = Config(**sections)
    check_combinations(config)
    return config


def read_keys(path: Path) -> dict[str, Any]:
    """The raw keys of a YAML file and of its bases; the file's own take precedence.

    Raises:
        ConfigError: see `read_chain`; also for an unknown key.
    """
    merged: dict[str, Any] = {}
    for file, keys in read_chain(path):
        _check_names(keys, f" in {file}")
        merged.update(keys)
    return merged


def _check_names(names: Iterable[Any], where: str = "") -> None:
    for name in names:
        if name not in all_keys():
            raise ConfigError(f"unknown key {shown(name)}{where}{suggestion(name)}")


def suggestion(name: Any) -> str:
    """End of an error message about the unknown key `name`: the nearest known key, or where to find all keys."""
    normal = (name if isinstance(name, str) else shown(name))[:100].replace("-", "_")
    if normal in _ALIASES:
        return f"; did you mean {_ALIASES[normal]}?"
    by_lower = {known.lower(): known for known in all_keys()}
    nearest = difflib.get_close_matches(normal.lower(), by_lower, n=1, cutoff=0.5)
    return f"; did you mean {by_lower[nearest[0]]}?" if nearest else "; python train.py --help lists all keys"


def to_flat_dict(config: Config) -> dict[str, Any]:
    """The flat keys of `config`, in the order of the schema; `load_config` of them returns an equal `Config`."""
    return {name: value for block in _blocks(config).values() for name, value in block.items()}


def save_config(config: Config, path: Union[str, Path]) -> None:
    """Write every key of the resolved configuration as YAML, one commented block per section."""
    write_yaml(
        Path(path), "Written by the job: every setting as resolved from defaults, YAML and flags.", _blocks(config)
    )


def _blocks(config: Config) -> dict[str, dict[str, Any]]:
    """Section -> key -> value, with lists instead of tuples, as YAML and JSON have them."""
    return {
        section: {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(getattr(config, section)).items()
        }
        for section in SECTIONS
    }


def for_one_process(config: Config) -> Config:
    """`config` with one device on one server.

    Scripts that use a single process (export.py, predict.py) can thus take the config.yaml of a job on eight devices.
    """
    run = dataclasses.replace(config.run, device_num=1, node_num=1, node_rank=0)
    return dataclasses.replace(config, run=run)
