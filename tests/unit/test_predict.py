"""Prediction: which images, batches, names of classes, formats, features; scripts/predict.py itself in-process."""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from focal.checkpoint.files import write_checkpoint
from focal.checkpoint.resume import Progress, make_meta
from focal.data import load_eval_image
from focal.errors import UserError
from focal.export.description import describe, from_entries, to_entries
from focal.export.mindir import read_description
from focal.export.onnx_network import write_onnx
from focal.models import create_model
from focal.predict import find_images, read_model_file
from scripts.predict import main

NAMES = ("ant", "bee", "cat", "a very long name of a class, as ImageNet's are")


@pytest.fixture(scope="module")
def model_files(tmp_path_factory):
    """The configuration of one network with random weights, and its checkpoint and ONNX file, by suffix."""
    import mindspore as ms

    from focal.config import load_config

    ms.set_device("CPU")  # a fixture of a module comes before those of tests, and before the first kernel
    ms.set_context(mode=ms.PYNATIVE_MODE)
    keys = {"arch": "focalv2_nano", "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "focal_levels": [2, 2]}
    keys.update(focal_stages=[0, 1], focal_windows=[3, 1], expand_sizes=[0, 0], window_size=4, focal_topK=8)
    keys.update(image_size=32, num_classes=4, device_target="CPU", image_mean=[0.5, 0.4, 0.3], crop_ratio=0.8, seed=5)
    config = load_config({**keys, "interpolation": "bilinear"})
    network = create_model(config)
    network.set_train(False)
    folder = tmp_path_factory.mktemp("models")
    tensors = {p.name: p.asnumpy() for p in network.get_parameters() if p.name != "random_counter"}
    tensors["head.weight"] = tensors["head.weight"] * 20  # probabilities that differ
    network.head.weight.set_data(network.head.weight * 20)
    write_checkpoint(folder / "model.ckpt", tensors, make_meta(config, Progress(), 1, 1, NAMES))
    write_onnx(network, (3, 32, 32), folder / "model.onnx", to_entries(describe(config, NAMES)))
    return config, network, folder


@pytest.fixture
def predict(monkeypatch, capsys, pynative_mode):
    """scripts/predict.py's exit code, output and errors; a UserError is raised."""

    def predict(*arguments):
        flags = ["--device_target", "CPU", "--graph_mode", "1"]
        monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, arguments), *flags])
        code = main()
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return predict


def expected_probabilities(model_files, path):
    from mindspore import Tensor

    config, network, _ = model_files
    logits = network(Tensor(load_eval_image(str(path), config)[None])).asnumpy()[0].astype(np.float64)
    return np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()


@pytest.mark.parametrize("suffix", ["ckpt", "onnx"])
def test_a_model_file_alone_says_how_to_see_an_image_and_what_it_shows(model_files, image_folder, predict, suffix):
    """No --config: network, preprocessing and names are the file's. Batches of 5 for 13 images leave a part of one."""
    model = model_files[2] / f"model.{suffix}"
    code, printed, _ = predict(image_folder / "val", "--pretrained", model, "--format", "json", "--batch_size", 5)
    rows = json.loads(printed)
    assert code == 0 and len(rows) == 13
    assert [row["image"] for row in rows] == sorted(map(str, (image_folder / "val").rglob("*.jpg")))
    for row in rows:
        expected = expected_probabilities(model_files, row["image"])
        assert [scored["label"] for scored in row["classes"]] == np.argsort(-expected).tolist()
        for scored in row["classes"]:
            assert scored["probability"] == pytest.approx(expected[scored["label"]], abs=1e-5)
            assert scored["name"] == NAMES[scored["label"]]


def test_flags_take_precedence_over_the_model_file(model_files, image_folder, predict):
    image, model = next((image_folder / "val" / "a").glob("*.jpg")), model_files[2] / "model.onnx"
    _, ours, _ = predict(image, "--pretrained", model)
    _, other, _ = predict(image, "--pretrained", model, "--image_mean", "[0.9, 0.9, 0.9]")
    assert ours != other
    with pytest.raises(UserError, match="does not take images"):
        predict(image, "--pretrained", model, "--image_size", 64)
    with pytest.raises(UserError, match="arch: focal_x, but the model file holds focalv2_nano"):
        predict(image, "--pretrained", model, "--arch", "focal_x")


def test_formats_hold_the_same_predictions(model_files, image_folder, predict, tmp_path):
    model = ["--pretrained", model_files[2] / "model.onnx", "--top_k", 2]
    images = image_folder / "val" / "b"
    _, table, _ = predict(images, *model)
    lines = table.splitlines()
    assert len(lines) == 4 and all(line.count(" % ") == 2 for line in lines)
    assert "a very long name of a class..." in table or "ant" in table
    predict(images, *model, "--output", tmp_path / "x.csv")
    predict(images, *model, "--output", tmp_path / "x.json")
    rows = list(csv.DictReader((tmp_path / "x.csv").open()))
    flat = [
        (row["image"], rank, scored["label"], scored["name"])
        for row in json.loads((tmp_path / "x.json").read_text())
        for rank, scored in enumerate(row["classes"], 1)
    ]
    assert [(row["image"], int(row["rank"]), int(row["label"]), row["name"]) for row in rows] == flat and len(flat) == 8
    for line, row in zip(lines, rows[::2]):
        assert line.startswith(row["image"]) and f"{100 * float(row['probability']):.1f} % {row['name'][:20]}" in line


def test_unreadable_images_are_named_and_do_not_stop_the_rest(model_files, image_folder, predict, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    images = sorted((image_folder / "val" / "c").glob("*.jpg"))
    inputs = [images[0], broken, *images[1:]]
    code, printed, errors = predict(*inputs, "--pretrained", model_files[2] / "model.onnx", "--batch_size", 1)
    assert code == 1 and [line.split()[0] for line in printed.splitlines()] == list(map(str, images))
    assert f"error: image: cannot read {broken}" in errors
    code, printed, errors = predict(broken, "--pretrained", model_files[2] / "model.onnx")
    assert code == 1 and printed.strip() == "" and str(broken) in errors


def test_outputs_that_are_not_finite_are_an_error(model_files, image_folder, predict, tmp_path):
    config, network, _ = model_files
    tensors = {p.name: p.asnumpy() for p in network.get_parameters() if p.name != "random_counter"}
    tensors["head.bias"] = np.array([0, np.nan, 0, 0], np.float32)
    write_checkpoint(tmp_path / "nan.ckpt", tensors, make_meta(config, Progress(), 1, 1, NAMES))
    with pytest.raises(UserError, match="000.jpg are not finite"):
        predict(image_folder / "val" / "a", "--pretrained", tmp_path / "nan.ckpt")


def test_images_of_any_name_are_predicted_and_named(model_files, image_folder, predict, tmp_path):
    """JSON has every name as it is; elsewhere a name stays on its line, and what is not text is escaped."""
    names = ['it\'s a "picture".jpg', "line\nbreak.jpg", "图片.jpg", os.fsdecode(b"\xff.jpg")]
    shown = ['it\'s a "picture".jpg', r"line\nbreak.jpg", "图片.jpg", r"\udcff.jpg"]
    folder = tmp_path / "b c"
    folder.mkdir()
    for name in (*names, "._hidden.jpg", "notes.txt"):
        (folder / name).write_bytes((image_folder / "val" / "a" / "000.jpg").read_bytes())
    (folder / ".trash").mkdir()
    (folder / ".trash" / "x.jpg").write_bytes(b"")
    arguments = [folder, "--pretrained", model_files[2] / "model.onnx", "--top_k", 1]
    code, table, errors = predict(*arguments)
    assert code == 0 and not errors
    lines = table.splitlines()
    assert len(lines) == 4 and all(any(line.startswith(f"{folder}/{name} ") for line in lines) for name in shown)
    predict(*arguments, "--output", tmp_path / "x.csv")
    with (tmp_path / "x.csv").open(encoding="utf-8", newline="") as file:
        assert {row["image"] for row in csv.DictReader(file)} == {f"{folder}/{name}" for name in shown}
    _, printed, _ = predict(*arguments, "--format", "json")
    assert {row["image"] for row in json.loads(printed)} == {f"{folder}/{name}" for name in names}
    model = ["--pretrained", model_files[2] / "model.ckpt", "--features", "pooled", "--output", tmp_path / "x.npy"]
    assert predict(folder, *model)[0] == 0
    assert set((tmp_path / "x.txt").read_text(encoding="utf-8").splitlines()) == {f"{folder}/{name}" for name in shown}
    (folder / names[1]).write_bytes(b"")
    code, _, errors = predict(*arguments)
    assert code == 1 and errors == f"error: image: cannot read {folder}/{shown[1]} (empty file)\n"


def test_features_are_what_the_network_computes(model_files, image_folder, predict, tmp_path):
    from mindspore import Tensor

    config, network, folder = model_files
    model, images = folder / "model.ckpt", sorted((image_folder / "val" / "a").glob("*.jpg"))
    pixels = Tensor(np.stack([load_eval_image(str(path), config) for path in images]))
    flags = [image_folder / "val" / "a", "--pretrained", model, "--output", tmp_path / "x.npy", "--batch_size", 3]
    assert predict(*flags, "--features", "pooled")[0] == 0
    pooled = np.load(tmp_path / "x.npy")
    expected = network.norm(network.forward_stages(pixels)[-1]).mean(1).asnumpy()
    assert pooled.shape == (5, 32) and (tmp_path / "x.txt").read_text().split() == list(map(str, images))
    np.testing.assert_allclose(pooled, expected, atol=1e-5)
    for stage, shape in ((0, (5, 16, 8, 8)), (1, (5, 32, 4, 4))):
        predict(*flags, "--features", f"stage{stage}")
        features = np.load(tmp_path / "x.npy")
        assert features.shape == shape
    last = network.forward_stages(pixels)[-1].asnumpy()  # (B, tokens, C)
    np.testing.assert_allclose(features.reshape(5, 32, 16).transpose(0, 2, 1), last, atol=1e-5)
    with pytest.raises(UserError, match="features: 'stage2' is not one of pooled, stage0, stage1"):
        predict(*flags, "--features", "stage2")
    with pytest.raises(UserError, match="logits only"):
        predict(image_folder, "--pretrained", folder / "model.onnx", "--output", "x.npy", "--features", "pooled")


def test_mistakes_are_explained(model_files, image_folder, predict, tmp_path):
    image, model = next((image_folder / "val" / "a").glob("*.jpg")), ["--pretrained", model_files[2] / "model.onnx"]
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ([tmp_path / "empty", *model], "empty names no image"),
        ([f"{tmp_path}/*.jpg", *model], "jpg names no image"),
        ([tmp_path / "none.jpg", *model], "none.jpg does not exist"),
        ([image, *model, "--top_k", 5], "top_k: 5, but the model has 4 classes"),
        ([image, *model, "--top_k", 0], "top_k: 0 must be at least 1"),
        ([image, *model, "--features", "pooled"], "--output FILE.npy"),
        ([image, "--pretrained", tmp_path / "no.onnx"], "no.onnx does not exist"),
        ([image, "--pretrained", image], "is neither a checkpoint"),
        ([image, *model, "--format", "xml"], "invalid choice: 'xml'"),
        ([image, *model, "--data_url", image_folder], "data_url: .* 4 of 4 names .label 0: 'ant' -> 'a'"),
    ):
        with pytest.raises(UserError, match=message):
            predict(*arguments)


def test_files_folders_and_patterns_name_images(image_folder):
    folder = image_folder / "val"
    whole = find_images([str(folder)])
    assert len(whole) == 13 and find_images([f"{folder}/**/*.jpg"]) == whole
    assert find_images([whole[3], f"{folder}/a/*"]) == [whole[3], *whole[:5]]


def test_weights_from_elsewhere_take_their_names_from_the_data(model_files, image_folder, predict, tmp_path):
    """A file without metadata: settings from --config, names from --data_url if the number fits, else numbers."""
    from focal.config import save_config

    config, network, _ = model_files
    tensors = {p.name: p.asnumpy() for p in network.get_parameters() if p.name != "random_counter"}
    write_checkpoint(tmp_path / "plain.ckpt", tensors, None)
    save_config(config, tmp_path / "plain.yaml")
    image = next((image_folder / "val" / "a").glob("*.jpg"))
    flags = [image, "--pretrained", tmp_path / "plain.ckpt", "--config", tmp_path / "plain.yaml", "--format", "json"]
    for data, names in ((image_folder, {"0", "1", "2", "3"}), (tmp_path / "four", {"w", "x", "y", "z"})):
        for name in "wxyz":
            (tmp_path / "four" / "train" / name).mkdir(parents=True, exist_ok=True)
        _, printed, _ = predict(*flags, "--data_url", data)
        assert {scored["name"] for scored in json.loads(printed)[0]["classes"]} == names


def test_a_description_survives_the_file(model_files, tmp_path):
    config, _, folder = model_files
    described = read_description(folder / "model.onnx")
    assert described.class_names == NAMES and described.settings == describe(config, NAMES).settings
    assert read_model_file(str(folder / "model.ckpt")).description == described
    entries = to_entries(describe(config, None))
    assert json.loads(entries["image_size"]) == [32, 32] and "class_names" not in entries
    assert json.loads(entries["crop_ratio"]) == 0.8 and json.loads(entries["interpolation"]) == "bilinear"
    assert from_entries(entries).class_names is None
    assert from_entries({}).settings == {} and from_entries({**entries, "model": "[3"}).settings == {}


def test_a_missing_onnx_runtime_is_one_line_with_the_command(model_files, image_folder, predict, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="^onnxruntime: not installed.*pip install onnx onnxruntime$"):
        predict(image_folder, "--pretrained", model_files[2] / "model.onnx")


def test_only_files_of_known_kinds_are_models(tmp_path):
    Path(tmp_path / "x.pth").write_bytes(b"x")
    with pytest.raises(UserError, match="neither a checkpoint"):
        read_model_file(str(tmp_path / "x.pth"))
