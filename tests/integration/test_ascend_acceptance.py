"""The acceptance run on a CPU: the rungs that start processes of every kind. About 35 seconds of CPU time.

All rungs: `bash scripts/ascend_acceptance.sh --device_target CPU`. Those left out run the code of tests/numerics and
of test_train_resume.py, where the same figures are compared.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.integration.jobs import REPOSITORY
from tools.nano_networks import NANO_V2

# One block: three processes compile it.
ONE_BLOCK = {**NANO_V2, "arch": "focalv2_one_block", "depths": [1], "num_heads": [2], "focal_stages": [0],
             "focal_levels": [2], "focal_windows": [3], "expand_sizes": [1], "batch_size": 8,
             "num_parallel_workers": 2}  # fmt: skip
RUNGS = ["driver", "MindSpore", "one operator", "flash", "one card", "all cards", "data"]


@pytest.mark.slow
def test_the_acceptance_run_climbs_on_a_cpu_and_leaves_its_record(tmp_path):
    command = ["bash", "scripts/ascend_acceptance.sh", "--device_target", "CPU", "--quick", "--output", str(tmp_path)]
    (tmp_path / "one_block.yaml").write_text(json.dumps(ONE_BLOCK), encoding="utf-8")  # JSON is YAML
    command += ["--config", str(tmp_path / "one_block.yaml")]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(
        [*command, "--rungs", ",".join(RUNGS)], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "acceptance.json").read_text(encoding="utf-8"))
    rungs = {rung["name"]: rung for rung in record["rungs"]}
    assert list(rungs) == RUNGS
    assert {name for name, rung in rungs.items() if rung["verdict"] == "skipped"} == {"driver", "flash"}
    assert {rung["note"] for rung in rungs.values() if rung["verdict"] == "skipped"} == {"needs an Ascend"}
    assert all(rung["verdict"] in ("passed", "skipped") for rung in rungs.values())

    measured = rungs["one card"]["figures"]["measured"]
    assert [row["settings"] for row in measured] == [{"jit_level": "auto", "amp_level": "O0"}]
    together = rungs["all cards"]["figures"]
    assert together["world_size"] == 2 and together["ranks_agree"]
    assert min(measured[0]["ms_per_step"], together["ms_per_step"], together["all_reduce_ms"]) > 0
    assert rungs["data"]["figures"]["images_per_second"] > 0

    assert record["fastest_safe_settings"] == "jit_level: auto\namp_level: O0\n"
    assert [row.split("|")[3].strip() for row in record["mindcv_rows"]] == ["1", "2"]
    for shown in (
        "| all cards | passed |",
        "| model name | params(M) |",
        "(not known to be safe: logits or gradients were left out):\njit_level: auto",
    ):
        assert shown in done.stdout
