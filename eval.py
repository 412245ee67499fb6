"""Evaluate a checkpoint: python eval.py --config configs/X.yaml --pretrained CKPT --data_url DATA [--use_ema True]

    python eval.py --config OUT/config.yaml --pretrained OUT/best/best.ckpt --json result.json

Without an Ascend the job runs on the CPU.
"""
# PYTHON_ARGCOMPLETE_OK: see docs/configuration.md

from __future__ import annotations

import dataclasses
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))  # a plain checkout needs no installation

from focal.checkpoint.paths import check_output_file
from focal.config import Config, ConfigError
from focal.errors import run_main
from focal.files import finite_or_none, write_json
from focal.job import Job, run_job

if TYPE_CHECKING:
    from focal.distributed.agreement import Listing
    from focal.evaluation import EvalResult

logger = logging.getLogger("focal")


def main() -> int:
    """Start workers if several devices are asked for, else evaluate in this process."""
    return run_job(__doc__, evaluate_checkpoint, check, stop_at_once=True, log_to_file=False)


def check(config: Config) -> None:
    """Refuse what evaluation cannot do, before anything slow is done."""
    if config.run.pretrained is None:
        raise ConfigError("pretrained: eval.py needs a checkpoint; give --pretrained CKPT")
    if config.run.dry_run:
        raise ConfigError("dry_run: True is for train.py; leave it out")
    if config.run.json is not None:
        check_output_file("json", config.run.json)
    if config.run.predictions is not None:
        check_output_file("predictions", config.run.predictions)


def evaluate_checkpoint(job: Job) -> int:
    """Load the weights, evaluate them on val and report; return the exit code."""
    from focal.checkpoint.class_names import check_class_names, class_names_of
    from focal.checkpoint.files import read_checkpoint
    from focal.checkpoint.weights import assign_weights, select_weights
    from focal.data import EvalData, check_data, check_ranks_agree, with_classes_of
    from focal.data.transforms.on_device import Normalize
    from focal.evaluation import EvalStep, evaluate
    from focal.models import create_model
    from focal.models.inference import prepare_for_evaluation
    from focal.predictions import PredictionCollector

    config, device = job.config, job.device
    path = str(config.run.pretrained)
    checkpoint = read_checkpoint(Path(path))
    weights = select_weights(checkpoint, config.run.use_ema)

    layout = check_data(config, job.storage.data_folder(), splits=("val",))
    config = with_classes_of(layout, config)
    saved_names, allowed = class_names_of(checkpoint.meta), config.run.allow_config_change
    check_class_names("pretrained", path, saved_names, layout.known_class_names, allowed)
    check_ranks_agree(config, device, layout, compared(config))
    data = EvalData(config, layout, device.rank, device.world_size)

    network = create_model(config)
    logger.info("%s: %s", path, assign_weights(network, weights, path))
    prepare_for_evaluation(network, config.step)

    predictions_file = config.run.predictions
    collector = PredictionCollector(data) if predictions_file is not None else None
    eval_step = EvalStep(network, Normalize(config.data), return_logits=collector is not None)
    result = evaluate(eval_step, data, config.data.skip_unreadable, predictions=collector)
    if collector is not None and predictions_file is not None:
        predictions = collector.gather(source(config, result))
        if device.is_main:
            predictions.save(Path(predictions_file))
    if device.is_main:
        report(result, config.run.json)
    return 0


def compared(config: Config) -> list[Listing]:
    """What the ranks must have in common here, beyond settings, data and code: the weights, and who meets when."""
    from focal.distributed.agreement import Listing, file_listing

    flags = [f"use_ema: {config.run.use_ema}", f"predictions given: {config.run.predictions is not None}"]
    return [Listing.of("flags", flags), file_listing("pretrained", config.run.pretrained)]


def source(config: Config, result: EvalResult) -> dict[str, Any]:
    """What a file of predictions says about the weights that made them."""
    weights = "EMA" if config.run.use_ema else "raw"
    return {"checkpoint": Path(str(config.run.pretrained)).name, "weights": weights, "top1": result.top1}


def report(result: EvalResult, json_file: Optional[str]) -> None:
    """Print the figures and, where asked for, write them as JSON."""
    print(f"top-1 {result.top1:.4f} %")
    print(f"top-5 {result.top5:.4f} %")
    print(f"loss {result.loss:.6f}")
    print(f"images {result.images}")
    print(f"images/second {result.images_per_second:.1f}")
    if json_file is not None:
        write_json(Path(json_file), finite_or_none(dataclasses.asdict(result)), indent=1)


if __name__ == "__main__":
    run_main(main)
