"""Whatever a file, a mapping or a flag holds: a checked Config, or one short ConfigError."""

from __future__ import annotations

import datetime
import tempfile
from pathlib import Path
from typing import Any, Optional

import pytest

from focal.config import Config, ConfigError, config_from_command_line, load_config, save_config, to_flat_dict
from focal.config.loading import all_keys

pytest.importorskip("hypothesis", reason="hypothesis is not installed: pip install -r requirements-dev.txt")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

quick = settings(derandomize=True, deadline=None, max_examples=100, database=None)

NUMBERS = st.one_of(
    st.integers(), st.integers(-3, 12), st.floats(), st.sampled_from([0.5, 10**400, 2**63, 1e308, 1e-320])
)
WORDS = st.one_of(
    st.text(max_size=20),
    st.text("0123456789.,:eE+-_[]() xXn", max_size=12),
    st.sampled_from(["none", "True", "no", "auto", "O1", "rand-m9-n2", "rand-m" + "9" * 400, "1:30", "010", "a\0b"]),
    NUMBERS.map(str),
    st.just("9" * 5000),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS, st.binary(max_size=5), st.just(datetime.date(2020, 1, 2)))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=8,
)
NAMES = st.one_of(*[st.sampled_from(list(all_keys()))] * 5, SCALARS)


def usual_value(name: str) -> st.SearchStrategy[Any]:
    """Values of about the right kind for a key: near its default, of its choices, or beyond its limits."""
    default, limits = all_keys()[name].field.default, all_keys()[name].field.metadata
    if "choices" in limits:
        return st.sampled_from([*limits["choices"], "none"])
    entry = default[0] if isinstance(default, tuple) else default
    if isinstance(entry, bool):
        kind: st.SearchStrategy[Any] = st.booleans()
    elif isinstance(entry, (int, float)):
        kind = st.one_of(st.integers(-1, 12), st.floats(0, 2), st.integers(0, 300).map(str))
    else:
        kind = st.one_of(st.none(), st.text("abc_/v2", max_size=9))
    return st.lists(kind, max_size=5) if isinstance(default, tuple) else kind


MAPPINGS = st.dictionaries(NAMES, VALUES, min_size=1, max_size=3)
USUAL = st.lists(st.sampled_from(list(all_keys())), min_size=1, max_size=4, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: usual_value(name) for name in names})
)


def config_or_error(load: Any) -> Optional[Config]:
    """The configuration, or None for a proper error; whatever else is raised fails the test."""
    try:
        config = load()
    except ConfigError as error:
        message = str(error)
        assert 10 < len(message) <= 2000 and "\n" not in message and "\0" not in message
        return None
    assert isinstance(config, Config)
    for name, value in to_flat_dict(config).items():  # legal, so it converts to itself
        assert all_keys()[name].coerce(value) == getattr_flat(config, name)
    return config


def getattr_flat(config: Config, name: str) -> Any:
    return next(getattr(section, name) for section in vars(config).values() if hasattr(section, name))


@quick
@given(MAPPINGS)
def test_any_mapping_is_a_config_or_one_short_error(mapping: dict) -> None:
    config_or_error(lambda: load_config(mapping))


@quick
@given(USUAL)
def test_a_mapping_of_usual_values_is_a_config_that_survives_its_file_or_one_short_error(mapping: dict) -> None:
    config = config_or_error(lambda: load_config(mapping))
    if config is not None:
        with tempfile.TemporaryDirectory() as folder:
            save_config(config, Path(folder) / "config.yaml")
            assert load_config(Path(folder) / "config.yaml") == config


YAML_LINES = st.lists(
    st.one_of(
        st.tuples(NAMES.map(str), st.one_of(WORDS, VALUES.map(lambda value: repr(value)[:200]))).map(": ".join),
        st.text("abk:-&*!|>%@`'\"[]{},#? \t\\\0\x85\ufeff0123\ud800", max_size=15),
        st.sampled_from([
            "base: nothing", "base: " + "x" * 300, "<<: *a", "epochs: !!python/name:os.system", "a: &a [*a]", "---",
            "%YAML 9.9", "epochs: !!int '0o7'", "seed: !!float x", "depths: !!set {1}", "arch: !!binary '='", "? ",
            "beta: !!omap [a: 1]", "beta: !!pairs [1]", "depths: &d [2, 2]", "num_heads: *d", "? [1, 2]", "- a",
        ]),
    ),
    max_size=5,
).map("\n".join)  # fmt: skip


@quick
@given(YAML_LINES, st.sampled_from(["utf-8", "utf-16", "latin-1"]))
def test_any_yaml_file_is_a_config_or_one_short_error(text: str, encoding: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "settings.yaml"
        path.write_bytes(text.encode(encoding, errors="replace"))
        config_or_error(lambda: load_config(path))


@quick
@given(st.lists(st.tuples(st.sampled_from([*all_keys(), "config"]), WORDS), max_size=4), st.booleans())
def test_any_flags_are_a_config_or_one_short_error(flags: list, tolerant: bool) -> None:
    argv = [f"--{name}={text}" for name, text in flags]
    config_or_error(lambda: config_from_command_line(argv, "", tolerate_unknown=tolerant)[0])
