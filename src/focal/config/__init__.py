"""Configuration: `load_config(path_or_dict, overrides) -> Config`."""

from focal.config.command_line import (
    config_and_arguments,
    config_for_model,
    config_from_command_line,
    parse_flags,
)
from focal.config.loading import for_one_process, load_config, save_config, to_flat_dict
from focal.config.schema import Config, ConfigError

__all__ = [
    "Config",
    "ConfigError",
    "config_and_arguments",
    "config_for_model",
    "config_from_command_line",
    "for_one_process",
    "load_config",
    "parse_flags",
    "save_config",
    "to_flat_dict",
]
