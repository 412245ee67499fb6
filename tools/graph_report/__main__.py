"""What a compiled network consists of: python tools/graph_report --config configs/X.yaml [--json FILE]

Prints, for inference (eval.py) and for the training step (train.py), how often each operator occurs, and per block the
floating-point operations of matrix products and convolutions and the bytes that operators read and write. Compiles
(minutes for a large network); nothing runs. docs/graph.md explains the figures.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "src"), str(Path(__file__).resolve().parents[2])]

from focal.checkpoint.paths import check_output_file  # noqa: E402
from focal.errors import UserError, run_main  # noqa: E402
from tools.graph_report.dump import MODES, GraphRequest, dump_graphs  # noqa: E402
from tools.graph_report.report import as_markdown, report, save  # noqa: E402


def main() -> None:
    """Read the flags, compile, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file of the network and its training")
    parser.add_argument("--batch_size", type=int, default=0, help="images; default: the configuration's")
    parser.add_argument("--mode", choices=MODES, help="only this one; default: infer and train")
    parser.add_argument("--for_ascend", action="store_true", help="with the operations that an Ascend gets, not a CPU")
    parser.add_argument("--json", type=Path, help="file for the figures")
    flags = parser.parse_args()
    if not Path(flags.config).is_file():
        raise UserError(f"config: {flags.config} does not exist; configs/ holds those of the published models")
    if flags.json is not None:
        check_output_file("json", str(flags.json))
    modes = [flags.mode] if flags.mode else ["infer", "train"]
    requests = [GraphRequest(flags.config, mode, flags.batch_size, flags.for_ascend) for mode in modes]
    with tempfile.TemporaryDirectory() as folder:
        graphs = dump_graphs(requests, Path(folder))
    results = [report(graph, mode) for graph, mode in zip(graphs, modes)]
    if flags.json is not None:
        save(results, flags.json)
    for result in results:
        print(as_markdown(result))


if __name__ == "__main__":
    run_main(main)
