"""export.py and scripts/predict.py as a user runs them, on a small network and real images."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from focal.config import load_config, to_flat_dict
from scripts.make_digits import write_digits

ROOT = Path(__file__).resolve().parents[2]


def run(*command, expect=0):
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout if expect == 0 else done.stderr


@pytest.fixture(scope="module")
def two_stages(tmp_path_factory):
    """Configuration file with the first two stages of the quickstart's network, which most processes here compile."""
    first = {"depths": [1, 1], "num_heads": [1, 2], "focal_levels": [2, 2], "focal_windows": [5, 3],
             "expand_sizes": [2, 2], "focal_stages": [0, 1]}  # fmt: skip
    path = tmp_path_factory.mktemp("config") / "two_stages.yaml"
    path.write_text(yaml.safe_dump({**to_flat_dict(load_config(ROOT / "configs/quickstart_digits.yaml")), **first}))
    return path


@pytest.fixture(scope="module")
def small(two_stages):
    """Flags of a job with that network."""
    return ["--config", two_stages, "--device_target", "CPU"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_digits(str(tmp_path_factory.mktemp("data") / "digits"))


@pytest.fixture(scope="module")
def checkpoint(two_stages, tmp_path_factory):
    """An untrained network; its weights need not be good, only the same everywhere."""
    from focal.checkpoint.files import write_checkpoint
    from focal.checkpoint.resume import Progress, make_meta
    from focal.models import create_model

    config = load_config(two_stages, {"seed": 3})
    network = create_model(config)
    path = tmp_path_factory.mktemp("weights") / "network.ckpt"
    tensors = {p.name: p.asnumpy() for p in network.get_parameters() if p.name != "random_counter"}
    names = [f"digit {number}" for number in range(10)]
    write_checkpoint(path, tensors, make_meta(config, Progress(), 1, 1, names))
    return path


@pytest.fixture(scope="module")
def predicted(digits, checkpoint):
    """Two images, and what scripts/predict.py says about them with the checkpoint."""
    images = sorted((digits / "val" / "7").glob("*.png"))[:2]
    return images, run("scripts/predict.py", *images, "--pretrained", checkpoint, "--device_target", "CPU")


@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["MINDIR", "ONNX"])
def test_export_and_predict_agree_with_the_checkpoint(file_format, two_stages, digits, checkpoint, predicted, tmp_path):
    """In a folder of any name, with the settings of a job of eight devices; ONNX also with those of an Ascend.

    Each file states its network, preprocessing and class names; ONNX is run without a word about the device.
    """
    target = tmp_path / "a föld er" / f"net work.{file_format.lower()}"
    job = ["--config", two_stages, "--device_num", 8, "--node_num", 2, "--master_port", 8118]
    printed = run(
        "export.py", *job, "--pretrained", checkpoint, "--file_format", file_format, "--file_name", target,
        "--data_url", digits, "--device_target", "Ascend" if file_format == "ONNX" else "CPU",
    )  # fmt: skip
    difference = float(printed.rsplit("images: ", 1)[1])
    assert 0 <= difference <= 1e-4
    images, from_checkpoint = predicted
    cpu = [] if file_format == "ONNX" else ["--device_target", "CPU"]
    from_file = run("scripts/predict.py", *images, "--pretrained", target, *cpu)
    assert from_file == from_checkpoint and from_file.count(" % digit ") == 10
    error = run("scripts/predict.py", *job, "--image_size", 96, "--pretrained", target, images[0], expect=2)
    assert "does not take images (3, 96, 96)" in error and "Traceback" not in error


def test_a_file_whose_logits_differ_is_not_kept(two_stages, digits, tmp_path, monkeypatch):
    """The comparison can fail: a network whose file computes something else is refused and leaves no file."""
    from focal.errors import UserError
    from focal.export import mindir as export
    from focal.models import create_model

    config = load_config(two_stages, {"file_format": "ONNX"})
    images = export.load_images(export.find_images(str(digits), 2), config)
    honest = export.write_onnx

    def write_with_another_head(network, shape, path, entries):
        network.head.bias.set_data(network.head.bias + 0.001)
        honest(network, shape, path, entries)

    monkeypatch.setattr(export, "write_onnx", write_with_another_head)
    with pytest.raises(UserError, match="differ from the network's by 1.00e-03.*not kept"):
        export.export_network(create_model(config), config, tmp_path / "network.onnx", images)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--file_format", "AIR"], "file_format: AIR can only be written on an Ascend"),
        (["--file_format", "ONNX", "--file_name", "x.mindir"], "file_name: x.mindir does not end in .onnx"),
        (["--file_format", "TFLITE"], "file_format: 'TFLITE' is not one of MINDIR, AIR, ONNX"),
        (["--file_name", "."], "file_name: . is a folder; name a file in it"),
        (["--file_name", "LICENSE/x.mindir"], "file_name: LICENSE/x.mindir cannot be written"),
        (["--data_url", "nowhere"], "data_url: nowhere does not exist"),
        (["--data_url", "configs"], "data_url: configs holds no images"),
    ],
)
def test_mistakes_of_an_export_are_one_line_with_a_hint(flags, message, small, checkpoint, digits):
    data = [] if "--data_url" in flags else ["--data_url", digits]
    error = run("export.py", *small, *data, "--pretrained", checkpoint, *flags, expect=2)
    assert message in error and len([line for line in error.splitlines() if line.startswith("error:")]) == 1


def test_a_missing_checkpoint_is_named(small, digits):
    error = run("export.py", *small, "--data_url", digits, "--pretrained", "no.ckpt", expect=2)
    assert "pretrained: no.ckpt does not exist" in error


def test_mistakes_of_a_prediction_are_one_line_with_a_hint(small, digits, checkpoint, tmp_path):
    image = next((digits / "val" / "0").glob("*.png"))
    flags = [*small, "--pretrained", checkpoint]
    assert "no image given" in run("scripts/predict.py", *flags, expect=2)
    assert "image: no.png does not exist" in run("scripts/predict.py", *flags, "no.png", expect=2)
    assert "no model given" in run("scripts/predict.py", *small, image, expect=2)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    assert "is not a complete ONNX file" in run("scripts/predict.py", *small, "--pretrained", broken, image, expect=2)


def test_images_for_the_check_come_from_all_classes(digits):
    from focal.export.mindir import find_images

    found = find_images(str(digits), 8)
    assert len({Path(path).parent for path in found}) == 8


def test_preparing_for_export_keeps_the_logits(pynative_mode):
    import mindspore as ms

    from focal.models.inference import prepare_for_export
    from tests.numerics.reference_cases import case_input, loaded_network

    network, images = loaded_network("nano_v2"), ms.Tensor(case_input("nano_v2"))
    before = network(images).asnumpy()
    prepare_for_export(network)
    np.testing.assert_allclose(network(images).asnumpy(), before, atol=1e-5)


def test_the_quickstart_ends_with_a_machine_readable_line(tmp_path):
    from scripts.quickstart_summary import summarise

    (tmp_path / "metrics.jsonl").write_text(json.dumps({"images_per_second": 10.0}) + "\n")
    best = {"top1": 98.3333, "images": 360, "images_per_second": 50.0}
    text = summarise(
        tmp_path, best, {**best, "top1": 98.0556}, "largest difference of logits on 8 images: 1.2e-06\n", Path("x"), 201
    )
    expected = "quickstart: top1=98.33 ema_top1=98.06 images=360 mindir_max_abs_diff=1.2e-06 seconds=201"
    assert text.splitlines()[-1] == expected


def test_the_digits_folder_holds_the_real_digits_in_the_reference_split(digits):
    """The image folder holds each 8 x 8 digit blown up by pixel repetition, in the split of the reference figures."""
    from sklearn.datasets import load_digits

    from tests.numerics.synthetic import digits_split

    train, held_out = digits_split()
    assert len(list((digits / "train").rglob("*.png"))) == len(train) == 1437
    assert {int(path.stem) for path in (digits / "val").rglob("*.png")} == set(held_out.tolist())
    data = load_digits()
    path = next(digits.rglob(f"{held_out[0]:04d}.png"))
    assert path.parent.name == str(data.target[held_out[0]])
    pixels = np.asarray(Image.open(path)).astype(float)
    np.testing.assert_allclose(pixels, np.kron(data.images[held_out[0]], np.ones((8, 8))) * 255 / 16, atol=0.5)
