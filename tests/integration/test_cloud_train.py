"""The report's command line as an OpenI task runs it: real train.py, real c2net, data mounted as an archive."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.integration.digits import write_digits
from tests.integration.jobs import job, python
from tests.integration.test_distributed import NANO, PATIENCE


def test_an_openi_task_trains_and_sends_its_results(tmp_path: Path) -> None:
    pytest.importorskip("c2net", reason="c2net is not installed: pip install -r requirements-dev.txt")
    (tmp_path / "nano.yaml").write_text(NANO)
    (tmp_path / "dataset").mkdir()
    shutil.make_archive(str(tmp_path / "dataset" / "imagenet"), "gztar", write_digits(tmp_path / "made", 16, 5))
    command = python(
        "train.py", config=tmp_path / "nano.yaml", run_openi=True, device_num=1, batch_size=4, max_steps=3,
        train_url="./not/used", cache_dir=tmp_path / "cache", grampus_code_file_name="x.zip", some_flag=7,
    )  # fmt: skip
    environment = {
        "DATA_DOWNLOAD_METHOD": "MOUNT",
        "LOCAL_CODE_PATH": str(tmp_path / "code"),
        "LOCAL_DATASET_PATH": str(tmp_path / "dataset"),
        "LOCAL_PRETRAIN_MODEL_PATH": str(tmp_path / "models"),
        "LOCAL_OUTPUT_PATH": str(tmp_path / "output"),
        "LOCAL_TENSORBOARD_PATH": str(tmp_path / "tensorboard"),
        "RANK_SIZE": "1",  # what a preset engine sets in its only process
        "RANK_ID": "0",
        "DEVICE_ID": "0",
    }
    with job(command, tmp_path / "out", **environment) as running:
        assert running.wait(PATIENCE) == 0, running.output
        output = running.output
    assert "flags of the platform, not settings of this job: --grampus_code_file_name=x.zip --some_flag=7" in output
    assert f"data: used in {tmp_path / 'cache' / 'data'}" in output
    assert (tmp_path / "cache" / "data" / "imagenet" / "train").is_dir()
    updates = [json.loads(line)["update"] for line in (tmp_path / "output" / "metrics.jsonl").read_text().splitlines()]
    assert updates == [1, 2, 3]
    assert (tmp_path / "output" / "checkpoints" / "last.ckpt").exists()
    assert "resolved" in (tmp_path / "output" / "config.yaml").read_text()
    assert (tmp_path / "output" / "log" / "rank_0.log").exists()
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_an_unknown_flag_is_refused_outside_the_cloud(tmp_path: Path) -> None:
    (tmp_path / "nano.yaml").write_text(NANO)
    command = python("train.py", config=tmp_path / "nano.yaml", grampus_code_file_name="x.zip")
    with job(command, tmp_path / "out") as running:
        assert running.wait(60) == 2
        assert running.output.splitlines()[-1].startswith("error: unknown flag --grampus_code_file_name")
