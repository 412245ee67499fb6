"""The grammar of `auto_augment`."""

from __future__ import annotations

import pytest

from focal.config.rand_augment_policy import Policy, parse_policy
from focal.config.schema import ConfigError


def test_policy_strings_are_parsed_into_their_fields() -> None:
    assert parse_policy("rand") == Policy(10, 2, 0, False, 0.5, False)
    assert parse_policy("rand-m9-mstd0.5-inc1") == Policy(9, 2, 0.5, True, 0.5, False)
    assert parse_policy("rand-p0.25-w0-n3-inc0-m6.5-mstd101") == Policy(6.5, 3, 101, False, 0.25, True)


@pytest.mark.parametrize(
    ("text", "named"),
    [("rand-q3", "'q3'"), ("rand-m", "'m'"), ("rand-n1.5", "'n1.5'"), ("rand-inc2", "'inc2'"), ("rand-p1.5", "'p1.5'"),
     ("rand-m11", "'m11'"), ("rand-w1", "'w1'"), ("augmix-q3", "'augmix-q3' is neither none nor"), ("rand-m-3", "'m'")],
)  # fmt: skip
def test_error_names_the_part_that_cannot_be_parsed(text: str, named: str) -> None:
    with pytest.raises(ConfigError, match="auto_augment") as caught:
        parse_policy(text)
    assert named in str(caught.value)
