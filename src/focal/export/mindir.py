"""Export: write a network to a file for other runtimes, and compare the file's logits with the network's."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable, TypeVar

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from focal.checkpoint.class_names import ClassNames
from focal.checkpoint.paths import check_output_file
from focal.config import Config
from focal.data import load_eval_image
from focal.data.folder import is_image_name
from focal.errors import UserError, one_line
from focal.export.description import ModelDescription, describe, from_entries, to_entries
from focal.export.onnx_graph import import_optional
from focal.export.onnx_network import write_onnx
from focal.files import atomic_write
from focal.models.focal_transformer import FocalTransformer
from focal.models.inference import prepare_for_export

SUFFIXES = {"MINDIR": ".mindir", "AIR": ".air", "ONNX": ".onnx"}
MAX_DIFFERENCE = 1e-4  # absolute, between the logits of the file and of the network
CHECK_IMAGES = 8

_Loaded = TypeVar("_Loaded")
Runner = Callable[[np.ndarray], np.ndarray]  # images (B, 3, H, W) float32 -> logits (B, num_classes)


def check_export(config: Config) -> Path:
    """The file to write, after checking that this machine can write it.

    Raises:
        UserError: AIR without an Ascend, ONNX without its packages, a file name that means another format.
    """
    run, suffix = config.run, SUFFIXES[config.run.file_format]
    if run.file_format == "AIR" and run.device_target != "Ascend":
        raise UserError(
            f"file_format: AIR can only be written on an Ascend, not with device_target {run.device_target}; "
            f"use MINDIR or ONNX here"
        )
    if run.file_format == "ONNX":
        import_optional("onnx")
        import_optional("onnxruntime")
    path = Path(run.file_name) if run.file_name else Path(run.train_url) / config.model.arch
    if path.suffix.lower() in SUFFIXES.values() and path.suffix.lower() != suffix:
        raise UserError(f"file_name: {path} does not end in {suffix}, the suffix of file_format {run.file_format}")
    if not path.name or path.is_dir():
        raise UserError(f"file_name: {path} is a folder; name a file in it, e.g. {path / config.model.arch}{suffix}")
    path = path if path.suffix == suffix else path.with_name(path.name + suffix)
    check_output_file("file_name", str(path))
    return path


def find_images(folder: str, most: int = CHECK_IMAGES) -> list[str]:
    """Up to `most` image files of `folder`/val (or imagenet/val, or the folder itself), spread over its classes.

    Raises:
        UserError: there are none.
    """
    for root in (Path(folder) / "val", Path(folder) / "imagenet" / "val", Path(folder)):
        by_folder = []
        for current, subfolders, names in os.walk(root):
            subfolders.sort()
            images = sorted(filter(is_image_name, names))
            if images:
                by_folder.append([os.path.join(current, name) for name in images[:most]])
            if len(by_folder) >= most:
                break
        rounds = [images[turn] for turn in range(most) for images in by_folder if turn < len(images)]
        if rounds:
            return rounds[:most]
    raise UserError(
        f"data_url: {folder} holds no images to check the exported file with; any folder with a few will do"
    )


def load_images(paths: list[str], config: Config) -> np.ndarray:
    """Images as evaluation sees them, (B, 3, H, W) float32."""
    return np.stack([load_eval_image(path, config) for path in paths])


def export_network(
    network: FocalTransformer, config: Config, path: Path, images: np.ndarray, class_names: ClassNames = None
) -> float:
    """Write `network` to `path`, load the file back and compare logits on `images`.

    The file takes its name only if it agrees.

    Args:
        network: in float32, with weights loaded. It is prepared for export in place.
        path: file to write.
        images: (B, 3, H, W) float32.
        class_names: by label, for the file's metadata.

    Returns:
        Largest absolute difference of the logits; NaN for AIR, which only its own tools can run.

    Raises:
        UserError: the file's logits differ by more than 1e-4; no file is left then.
    """
    file_format = config.run.file_format
    network.set_train(False)
    expected = np.concatenate([network(Tensor(image[None])).asnumpy() for image in images])  # (B, num_classes)
    prepare_for_export(network)
    network.compile_cache.clear()
    entries = to_entries(describe(config, class_names))
    with atomic_write(path) as draft:
        if file_format == "ONNX":
            write_onnx(network, images.shape[1:], draft, entries)
        else:
            _write_with_mindspore(network, file_format, images.shape[1:], draft, entries)
        if file_format == "AIR":
            return float("nan")
        run = open_exported(draft)
        actual = np.concatenate([run(image[None]) for image in images])  # (B, num_classes)
        difference = float(np.abs(actual - expected).max())
        if not difference <= MAX_DIFFERENCE:
            raise UserError(
                f"export: the logits of {path.name} differ from the network's by {difference:.2e}, more than "
                f"{MAX_DIFFERENCE:.0e}, on {len(images)} images; the file was not kept"
            )
    return difference


def _write_with_mindspore(
    network: nn.Cell, file_format: str, image_shape: tuple[int, ...], path: Path, entries: dict[str, str]
) -> None:
    """MINDIR or AIR, by way of a scratch folder: MindSpore refuses paths with spaces or letters beyond ASCII."""
    image = Tensor(np.zeros((1, *image_shape), np.float32))
    # Only MINDIR has a place for entries.
    options = {"custom_func": lambda model: _add_user_info(model, entries)} if file_format == "MINDIR" else {}
    with tempfile.TemporaryDirectory() as scratch:
        file = os.path.join(scratch, "network")
        ms.export(network, image, file_name=file, file_format=file_format, **options)
        shutil.move(file + path.suffix, path)


def read_description(path: Path) -> ModelDescription:
    """What an exported file says of itself; an empty description if it says nothing, as files of earlier versions do.

    Raises:
        UserError: the file is missing or damaged, or ONNX Runtime, which reads ONNX files, is not installed.
    """
    return from_entries(_load(path, {".mindir": _mindir_entries, ".onnx": _onnx_entries}))


def _add_user_info(model: Any, entries: Mapping[str, str]) -> None:
    """Add entries to the map `user_info` of a MINDIR message.

    MindSpore's generated code is older than today's protobuf packages, and with some of them maps come as lists of
    entries. The bytes of both are the same.
    """
    if hasattr(model.user_info, "update"):
        model.user_info.update(entries)
        return
    for key, value in entries.items():
        entry = model.user_info.add()
        entry.key, entry.value = key, value


def _mindir_entries(path: Path) -> dict[str, str]:
    from mindspore.train.mind_ir_pb2 import ModelProto

    model = ModelProto()
    model.ParseFromString(path.read_bytes())
    if hasattr(model.user_info, "items"):
        return dict(model.user_info)
    return {entry.key: entry.value for entry in model.user_info}


def _onnx_entries(path: Path) -> dict[str, str]:
    runtime = import_optional("onnxruntime")
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL  # nothing will be run
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return dict(session.get_modelmeta().custom_metadata_map)


def open_exported(path: Path) -> Runner:
    """A function that runs an exported file on the CPU, image by image (MINDIR) or batch by batch (ONNX).

    Raises:
        UserError: the file is missing or cannot be loaded, or the package that runs it is missing.
    """
    run = _load(path, {".mindir": _open_mindir, ".onnx": _open_onnx})

    def run_or_explain(images: np.ndarray) -> np.ndarray:
        try:
            return run(images)
        except Exception as error:  # above all, another image size
            shape = images.shape[1:]
            raise UserError(
                f"model: {path} does not take images {shape} ({one_line(error, 160)}); check image_size"
            ) from None

    return run_or_explain


def _load(path: Path, loaders: Mapping[str, Callable[[Path], _Loaded]]) -> _Loaded:
    """What the loader for the file's suffix makes of it."""
    if not path.is_file():
        raise UserError(f"model: {path} does not exist")
    if path.suffix not in loaders:
        raise UserError(f"model: {path}: cannot run files ending in {path.suffix}; known are {', '.join(loaders)}")
    try:
        return loaders[path.suffix](path)
    except UserError:
        raise
    except Exception as error:
        kind = path.suffix[1:].upper()
        raise UserError(f"model: {path} is not a complete {kind} file ({one_line(error, 160)})") from None


def _open_mindir(path: Path) -> Runner:
    cell = nn.GraphCell(ms.load(str(path)))
    cell.set_train(False)
    return lambda images: np.concatenate([cell(Tensor(image[None])).asnumpy() for image in images])


def _open_onnx(path: Path) -> Runner:
    session = import_optional("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]
