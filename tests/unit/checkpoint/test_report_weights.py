"""docs/migration.md: its code turns names of the report's checkpoints into official ones."""

import re
from pathlib import Path

import mindspore as ms
import numpy as np

from focal.checkpoint.convert import read_official_weights
from focal.checkpoint.official import load_official_state_dict, official_state_dict
from focal.config import load_config
from focal.models import create_model
from tools.nano_networks import NANO_V2

ROOT = Path(__file__).resolve().parents[3]


def report_name(name):
    """The report's name of an official entry."""
    if re.search(r"(^|\.)norm\d?\.", name):
        name = name.replace(".weight", ".gamma").replace(".bias", ".beta")
    return "model." + re.sub(r"(topk_cloest_(?:indice|coords)_)", r"\1param_", name)


def test_the_code_for_the_reports_checkpoints_gives_an_official_state_dict(tmp_path, monkeypatch):
    network = create_model(load_config({**NANO_V2, "seed": 3}))
    state = official_state_dict(network)
    entries = [(report_name(name), value.astype(np.int32 if value.dtype.kind == "i" else np.float32))
               for name, value in state.items()]  # fmt: skip
    entries += [(f"{prefix}{entries[0][0]}", entries[0][1]) for prefix in ("_ema_weights.", "moment1.")]
    monkeypatch.chdir(tmp_path)
    ms.save_checkpoint([{"name": name, "data": ms.Tensor(value)} for name, value in entries], "report.ckpt")
    code = re.search(r"```python\n(import mindspore.*?)```", (ROOT / "docs" / "migration.md").read_text(), re.DOTALL)
    exec(compile(code.group(1), "docs/migration.md", "exec"), {})
    other = create_model(load_config({**NANO_V2, "seed": 4}))
    load_official_state_dict(other, read_official_weights("report.npz"))
    for name, value in official_state_dict(other).items():
        np.testing.assert_array_equal(value, state[name], err_msg=name)
