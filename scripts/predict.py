"""Classify images: python scripts/predict.py IMAGE|FOLDER|PATTERN... --pretrained MODEL

MODEL is a checkpoint (.ckpt) or a file written by export.py (.onnx, .mindir). It states its network, its preprocessing
and its classes; give --config only for weights from elsewhere. Flags take precedence over both.
An ONNX file runs in ONNX Runtime on the CPU, whatever the device target.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from focal.checkpoint.paths import check_output_file  # noqa: E402
from focal.config import Config, ConfigError, config_for_model, for_one_process, parse_flags  # noqa: E402
from focal.errors import run_main  # noqa: E402

if TYPE_CHECKING:
    from focal.predict import ModelFile


def main() -> Optional[int]:
    """Read the command line, open the model, write the likeliest classes of each image, or its features."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # names may hold characters that the terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    flags, arguments = parse_flags(sys.argv[1:], __doc__, add_arguments)
    check_arguments(flags, arguments)
    from focal.distributed.device import setup_device
    from focal.distributed.versions import check_versions
    from focal.predict import find_images, read_model_file

    if "batch_size" in flags:  # its rules are for training, for example to be even with Mixup
        flags.setdefault("eval_batch_size", flags.pop("batch_size"))
    paths = find_images(arguments.images)
    model_file = read_model_file(flags["pretrained"])
    config = for_one_process(config_for_model(flags, model_file.description.settings))
    if model_file.path.suffix != ".onnx":
        setup_device(config.run)
        check_versions()
    unreadable: list[str] = []
    if arguments.features:
        write_features(paths, model_file, config, arguments, unreadable)
    else:
        write_predictions(paths, model_file, config, arguments, unreadable, "data_url" in flags)
    for message in unreadable:
        print(f"error: {message}", file=sys.stderr)
    return 1 if unreadable else 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image files, folders or quoted patterns")
    parser.add_argument("--top_k", type=int, metavar="K", help="classes per image (default: 5, or all if fewer)")
    parser.add_argument("--format", choices=("table", "csv", "json"), help="default: by the suffix of FILE, else table")
    parser.add_argument("--output", metavar="FILE", help="write to FILE instead of the terminal")
    parser.add_argument(
        "--features",
        metavar="WHICH",
        help="write features to --output FILE.npy instead: pooled (images, channels), or stage0, stage1, ... (images, "
        "channels, height, width); the images' paths go to FILE.txt",
    )


def check_arguments(flags: dict[str, str], arguments: argparse.Namespace) -> None:
    """Refuse what cannot work, before MindSpore is imported."""
    if not flags.get("pretrained"):
        raise ConfigError("pretrained: no model given; add --pretrained MODEL (.ckpt, .onnx or .mindir)")
    if not Path(flags["pretrained"]).exists():
        raise ConfigError(f"pretrained: {flags['pretrained']} does not exist")
    if not arguments.images:
        raise ConfigError("no image given; name image files, folders or quoted patterns")
    if arguments.top_k is not None and arguments.top_k < 1:
        raise ConfigError(f"top_k: {arguments.top_k} must be at least 1")
    if arguments.features and (arguments.format or arguments.top_k):
        raise ConfigError("features: --format and --top_k are for classes; omit them")
    if arguments.features and not str(arguments.output).endswith(".npy"):
        raise ConfigError("features: name the file with --output FILE.npy")
    if arguments.output:
        check_output_file("output", arguments.output)


def write_predictions(
    paths: list[str],
    model_file: ModelFile,
    config: Config,
    arguments: argparse.Namespace,
    unreadable: list[str],
    data_named: bool,
) -> None:
    """Classify the images and write the predictions."""
    from focal.files import write_text
    from focal.predict import FORMATS, TOP_K, classify, format_predictions, names_of_classes, open_model

    names = names_of_classes(model_file, config, data_named)
    if not names:
        raise ConfigError("num_classes: 0, so the network has no head; use --features pooled")
    if arguments.top_k and arguments.top_k > len(names):
        raise ConfigError(f"top_k: {arguments.top_k}, but the model has {len(names)} classes")
    run, top_k = open_model(model_file, config), arguments.top_k or min(TOP_K, len(names))
    predictions = list(classify(paths, run, config, names, top_k, unreadable))
    suffix = Path(arguments.output or "").suffix[1:]
    text = format_predictions(predictions, arguments.format or (suffix if suffix in FORMATS else "table"))
    if arguments.output:
        write_text(Path(arguments.output), text + "\n")
    else:
        print(text)


def write_features(
    paths: list[str], model_file: ModelFile, config: Config, arguments: argparse.Namespace, unreadable: list[str]
) -> None:
    """Write the features of all images as one array, and the images' paths, a line per row, beside it."""
    import numpy as np

    from focal.errors import printable
    from focal.files import atomic_write, write_text
    from focal.predict import open_features, run_batches

    run = open_features(model_file, config, arguments.features)
    batches = list(run_batches(paths, run, config, unreadable))
    if not batches:
        return
    features, output = np.concatenate([rows for _, rows in batches]), Path(arguments.output)
    with atomic_write(output) as draft:
        np.save(draft, features)
    readable = [printable(path) for batch, _ in batches for path in batch]
    write_text(output.with_suffix(".txt"), "\n".join(readable) + "\n")
    print(f"wrote {output}: {features.dtype} {features.shape}")


if __name__ == "__main__":
    run_main(main)
