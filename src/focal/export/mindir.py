"""Write a network to a file for other runtimes, and hold what the file computes against the network."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from focal.checkpoint.paths import check_output_file
from focal.config import Config
from focal.data import load_eval_image
from focal.data.folder import IMAGE_EXTENSIONS
from focal.errors import UserError
from focal.export.onnx_graph import import_onnx
from focal.export.onnx_network import write_onnx
from focal.models.inference import prepare_for_export

logger = logging.getLogger("focal")

SUFFIXES = {"MINDIR": ".mindir", "AIR": ".air", "ONNX": ".onnx"}
MAX_DIFFERENCE = 1e-4  # absolute, between logits of file and network
CHECK_IMAGES = 8

Runner = Callable[[np.ndarray], np.ndarray]  # images (B, 3, H, W) float32 -> logits (B, num_classes)


def check_export(config: Config) -> Path:
    """The file to write, after checking that the format can be written here.

    Raises:
        UserError: AIR without an Ascend, ONNX without its packages, a file name of another format.
    """
    file_format, run = config.run.file_format, config.run
    if file_format == "AIR" and run.device_target != "Ascend":
        raise UserError(
            f"file_format: AIR can only be written on an Ascend, not with device_target {run.device_target}; "
            f"use MINDIR or ONNX here"
        )
    if file_format == "ONNX":
        import_onnx()
        _import_onnxruntime()
    suffix = SUFFIXES[file_format]
    path = Path(run.file_name) if run.file_name else Path(run.train_url) / config.model.arch
    if path.suffix.lower() in SUFFIXES.values() and path.suffix.lower() != suffix:
        raise UserError(f"file_name: {path} does not end in {suffix}, which file_format {file_format} means")
    if not path.name or path.is_dir():
        raise UserError(f"file_name: {path} is a folder; name a file in it, e.g. {path / config.model.arch}{suffix}")
    path = path if path.suffix == suffix else path.with_name(path.name + suffix)
    check_output_file("file_name", str(path))
    return path


def find_images(folder: str, most: int = CHECK_IMAGES) -> list[str]:
    """Up to `most` image files of `folder`/val (or imagenet/val, or the folder itself), spread over its classes.

    Raises:
        UserError: there is none.
    """
    for below in ("val", os.path.join("imagenet", "val"), ""):
        root = os.path.join(folder, below)
        if os.path.isdir(root):
            by_folder = []
            for current, subfolders, names in os.walk(root):
                subfolders.sort()
                images = sorted(name for name in names if Path(name).suffix.lower() in IMAGE_EXTENSIONS)
                by_folder.append([os.path.join(current, name) for name in images[:most]])
                if sum(map(bool, by_folder)) >= most:
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


def export_network(network: nn.Cell, config: Config, path: Path, images: np.ndarray) -> float:
    """Write `network` to `path`, load the file back and compare logits on `images`.

    The file is written beside its place and moved there only if it agrees.

    Args:
        network: in float32, weights loaded. It is prepared for export in place.
        config: of the network.
        path: file to write.
        images: (B, 3, H, W) float32.

    Returns:
        Largest absolute difference of the logits. For AIR, which only its own tools can run, nan.

    Raises:
        UserError: the file's logits differ by more than 1e-4; no file is left then.
    """
    network.set_train(False)
    expected = np.concatenate([network(Tensor(image[None])).asnumpy() for image in images])
    prepare_for_export(network)
    network.compile_cache.clear()
    path.parent.mkdir(parents=True, exist_ok=True)
    unchecked = path.with_name(f"{path.stem}.unchecked{path.suffix}")
    example = Tensor(np.zeros((1, *images.shape[1:]), np.float32))
    try:
        if config.run.file_format == "ONNX":
            write_onnx(network, images.shape[1:], unchecked)
        else:
            # Written elsewhere: MindSpore refuses paths with spaces or letters beyond ASCII.
            with tempfile.TemporaryDirectory() as scratch:
                draft = os.path.join(scratch, "network")
                ms.export(network, example, file_name=draft, file_format=config.run.file_format)
                shutil.move(draft + path.suffix, unchecked)
        if config.run.file_format == "AIR":
            difference = float("nan")
        else:
            run = open_exported(unchecked)
            actual = np.concatenate([run(image[None]) for image in images])
            difference = float(np.abs(actual - expected).max())
            if not difference <= MAX_DIFFERENCE:
                raise UserError(
                    f"export: the logits of {path.name} differ from the network's by {difference:.2e}, more than "
                    f"{MAX_DIFFERENCE:.0e}, on {len(images)} images; it was not kept"
                )
        os.replace(unchecked, path)
    finally:
        unchecked.unlink(missing_ok=True)
    return difference


def open_exported(path: Path) -> Runner:
    """A function that runs an exported file on the CPU, image by image (MINDIR) or batch by batch (ONNX).

    Raises:
        UserError: no such file, one that does not load, or the package that runs it is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"model: {path} does not exist")
    if path.suffix == ".mindir":
        return _open_mindir(path)
    if path.suffix == ".onnx":
        return _open_onnx(path)
    raise UserError(f"model: {path}: cannot run files ending in {path.suffix}; known are .mindir, .onnx")


def _open_mindir(path: Path) -> Runner:
    try:
        cell = nn.GraphCell(ms.load(str(path)))
    except Exception as error:
        raise UserError(f"model: {path} is no whole MINDIR file ({str(error).strip().splitlines()[0][:120]})") from None
    cell.set_train(False)

    def run(images: np.ndarray) -> np.ndarray:
        try:
            return np.concatenate([cell(Tensor(image[None])).asnumpy() for image in images])
        except Exception as error:
            raise _does_not_take(path, images, error) from None

    return run


def _does_not_take(path: Path, images: np.ndarray, error: Exception) -> UserError:
    """What a runtime means by an error of its own: another image size, above all."""
    reason = " ".join(str(error).split())[:160]
    return UserError(f"model: {path} does not take images {images.shape[1:]} ({reason}); check image_size")


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise UserError("ONNX files are run with the onnxruntime package; pip install onnxruntime") from None
    return onnxruntime


def _open_onnx(path: Path) -> Runner:
    onnxruntime = _import_onnxruntime()
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UserError(f"model: {path} is no whole ONNX file ({str(error).strip().splitlines()[0][:120]})") from None

    def run(images: np.ndarray) -> np.ndarray:
        try:
            return session.run(None, {session.get_inputs()[0].name: images})[0]
        except Exception as error:
            raise _does_not_take(path, images, error) from None

    return run
