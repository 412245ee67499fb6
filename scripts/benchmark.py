"""Measure speed: python scripts/benchmark.py infer|train|export|data --config configs/X.yaml [--json RESULT.json]

Every key of the configuration is a flag, as in train.py; `python scripts/benchmark.py data --help` lists the others.
"""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "src"), str(Path(__file__).resolve().parents[1])]

# Subcommand -> module with add_arguments(parser) and run(config, arguments), and what it measures.
BENCHMARKS = {
    "infer": ("tools.benchmark.network", "speed of the forward pass"),
    "train": ("tools.benchmark.network", "speed of the training step"),
    "export": ("tools.benchmark.network", "speed of an exported file (--file_format MINDIR or ONNX)"),
    "data": ("tools.benchmark.data_pipeline", "images per second of the training data pipeline, by stage"),
}


def main() -> None:
    from focal.checkpoint.paths import check_output_file
    from focal.config import config_and_arguments, for_one_process
    from focal.config.help import script_parser

    parser = script_parser(__doc__)
    parser.add_argument(
        "command", choices=BENCHMARKS, help="; ".join(f"{n}: {text}" for n, (_, text) in BENCHMARKS.items())
    )
    command = parser.parse_args(sys.argv[1:2]).command
    module_name, summary = BENCHMARKS[command]
    docstring = f"Measure the {summary}: python scripts/benchmark.py {command} --config configs/X.yaml"
    module = importlib.import_module(module_name)  # imports MindSpore, which takes seconds
    config, arguments = config_and_arguments(sys.argv[2:], docstring, module.add_arguments)
    config, arguments.command = for_one_process(config), command
    if config.run.json is not None:
        check_output_file("json", config.run.json)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    module.run(config, arguments)


if __name__ == "__main__":
    from focal.errors import run_main

    run_main(main)
