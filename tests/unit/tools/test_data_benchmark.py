"""scripts/benchmark.py data: rounds and the peer. What it measures is run in tests/integration/test_data_scripts.py."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from focal.config import load_config
from focal.config.schema import Config
from focal.data import check_data
from focal.errors import UserError
from tools.benchmark import data_pipeline


@pytest.fixture
def config(image_folder: Path) -> Config:
    keys = {"num_classes": 3, "image_size": 32, "batch_size": 4, "device_target": "CPU"}
    return load_config({**keys, "data_url": str(image_folder)})


def flags(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    data_pipeline.add_arguments(parser)
    return parser.parse_args(arguments)


def measured(config: Config, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, Any]:
    """The figures of a pipeline that makes 8, 20 and 6 images a second, one after the other."""
    rates = iter((8.0, 20.0, 6.0))
    monkeypatch.setattr(data_pipeline, "measure_pipeline", lambda *_: next(rates))
    return data_pipeline.measure_rounds(config, check_data(config, config.data.data_url), flags(*arguments))


def test_without_a_peer_there_is_one_round(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(config, monkeypatch) == {"images_per_second": 8.0}


def test_the_peer_takes_turns_and_the_ratio_is_the_median_of_the_rounds(
    config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "peer.py"  # makes 4, 5 and 6 images a second
    program.write_text(
        f"runs = open({str(tmp_path / 'runs')!r}, 'a')\nruns.write('x')\nprint('images_per_second:', 3 + runs.tell())\n"
    )
    result = measured(config, monkeypatch, "--rounds", "3", "--peer", shlex.join([sys.executable, str(program)]))
    assert result == {
        "images_per_second": 8.0,
        "peer_images_per_second": 5.0,
        "ratio_to_peer": 2.0,  # of 8 / 4, 20 / 5 and 6 / 6
        "ratio_to_peer_range": [1.0, 4.0],
    }


def test_fewer_rounds_than_one_are_refused(config: Config) -> None:
    with pytest.raises(UserError, match="rounds: 0 must be at least 1"):
        data_pipeline.run(config, flags("--rounds", "0"))
