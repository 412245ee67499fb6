"""What tests of conversions share: the script, weights of the authors' kind, settings of a case as a file."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import yaml

from focal.checkpoint.official import official_state_dict
from focal.config import to_flat_dict
from tests.numerics.reference_cases import loaded_network

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "convert_weights.py"
HAS_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="PyTorch is an optional extra: pip install torch")


def settings_file(tmp_path, config):
    """A YAML file that holds all settings of `config`."""
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(to_flat_dict(config)))
    return path


def full_state(case):
    """The authors' state dict of a case, their key indices included."""
    return official_state_dict(loaded_network(case))


def assert_same_entries(left, right):
    assert left.keys() == right.keys()
    for name, value in right.items():
        assert left[name].dtype == value.dtype, name
        np.testing.assert_array_equal(left[name], value, err_msg=name)
