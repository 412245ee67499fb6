"""A downloaded weight file, converted, is evaluated by eval.py like any checkpoint, also at another image size."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import yaml

from focal.checkpoint.convert import convert_to_checkpoint
from focal.checkpoint.official import official_state_dict
from focal.config import to_flat_dict
from focal.models import create_model
from tests.integration.jobs import REPOSITORY
from tests.numerics.reference_cases import case_config
from tests.unit.checkpoint.test_pdparams import paddle_state, save
from tests.unit.conftest import write_images

FIRST_STAGES = {"depths": [1, 1], "num_heads": [1, 2], "focal_stages": [0, 1], "focal_levels": [2, 2],
                "focal_windows": [5, 3], "expand_sizes": [2, 2]}  # fmt: skip


def test_a_converted_file_is_evaluated_at_a_larger_size(tmp_path):
    """From PaddlePaddle's format and 64 pixels to 96, with windows that grow in proportion."""
    config = case_config("nano_v1", device_target="CPU", amp_level="O0", batch_size=4, **FIRST_STAGES)
    save(tmp_path / "x.pdparams", paddle_state(official_state_dict(create_model(config))))
    convert_to_checkpoint(str(tmp_path / "x.pdparams"), str(tmp_path / "x.ckpt"), config)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_flat_dict(config)))
    write_images(tmp_path / "data" / "val", {str(label): 1 for label in range(10)})
    line = [sys.executable, "eval.py", "--config", tmp_path / "config.yaml", "--data_url", tmp_path / "data",
            "--pretrained", tmp_path / "x.ckpt", "--json", tmp_path / "result.json",
            "--image_size", "96", "--window_size", "6"]  # fmt: skip
    done = subprocess.run(list(map(str, line)), cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["images"] == 10 and math.isfinite(result["loss"])
    (loaded,) = [line for line in done.stderr.splitlines() + done.stdout.splitlines() if "tensors loaded" in line]
    assert "resampled bicubically for this image or window size: layers.0.blocks.0." in loaded
    assert "initialised" not in loaded, "every weight has a counterpart"
