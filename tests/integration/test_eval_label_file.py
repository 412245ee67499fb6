"""eval.py on a flat val with a list of labels, as ImageNet's comes, gives what class folders give."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from focal.checkpoint.files import write_checkpoint
from focal.config import load_config
from focal.models import create_model
from focal.predictions import Predictions
from tests.integration.jobs import job
from tests.integration.train_jobs import command, make_workplace


def evaluated(config: Path, data: Path, name: str, **flags: Any) -> tuple[dict[str, Any], Predictions]:
    """Figures and predictions of eval.py."""
    files = {"json": config.parent / f"{name}.json", "predictions": config.parent / f"{name}.npz"}
    keys = {"pretrained": config.parent / "a.ckpt", "data_url": data, **files, **flags}
    line = command(config, config.parent / name, "eval.py", **keys)
    with job(line, config.parent / f"{name}.log") as run:
        assert run.wait(300) == 0, run.output
    return json.loads(files["json"].read_text()), Predictions.load(files["predictions"])


@pytest.mark.slow
def test_a_flat_val_with_labels_is_evaluated_as_it_is(tmp_path: Path) -> None:
    """Files have names of any bytes, in which the order of the classes is lost."""
    config = make_workplace(tmp_path, graph_mode=1)
    network = create_model(load_config(config))
    tensors = {p.name: p.asnumpy() for p in network.get_parameters() if p.name != "random_counter"}
    tensors["head.weight"] = tensors["head.weight"] * 20  # predictions that differ from image to image
    write_checkpoint(tmp_path / "a.ckpt", tensors, None)
    flat, lines, old_names = tmp_path / "flat", [], {}
    (flat / "val").mkdir(parents=True)
    images = sorted((tmp_path / "data" / "val").glob("*/*.png"), key=lambda path: path.name[::-1])
    for number, image in enumerate(images):
        name = os.fsdecode(b"ILSVRC 2012 \xe5\x9b\xbe'\xff_%02d.PNG" % number)
        shutil.copy(image, flat / "val" / name)
        lines.append(os.fsencode(f"{name} {image.parent.name}\n"))
        old_names[f"val/{name}"] = f"val/{image.parent.name}/{image.name}"
    (flat / "val_label.txt").write_bytes(b"".join(lines))

    expected, of_folders = evaluated(config, tmp_path / "data", "folders")
    found, of_list = evaluated(config, flat, "list", device_num=2)
    assert found["images"] == expected["images"] == 13
    for figure in ("top1", "top5", "loss"):
        assert found[figure] == pytest.approx(expected[figure], rel=1e-5)
    assert of_list.class_names == ("0", "1", "2", "3") and len(set(of_list.names)) == 13
    place = {name: number for number, name in enumerate(of_folders.names)}
    order = [place[old_names[name]] for name in of_list.names]
    assert (of_list.labels == of_folders.labels[order]).all()
    np.testing.assert_allclose(of_list.probabilities, of_folders.probabilities[order], rtol=1e-4)
