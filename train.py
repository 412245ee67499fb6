"""Train a Focal Transformer: python train.py --config configs/X.yaml --data_url DATA --train_url OUT --device_num 8

    python train.py --config configs/finetune_folder.yaml --data_url DATA --pretrained X.ckpt
    python train.py --config OUT/config.yaml --resume auto
    python train.py --run_openi True --arch focalv2_small_useconv_patch4_window7_224 --device_num 8

--dry_run True prints what a training would do, and does none of it. Without an Ascend the job runs on the CPU.
"""
# PYTHON_ARGCOMPLETE_OK: see docs/configuration.md

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))  # a plain checkout needs no installation

from focal.checkpoint.paths import check_teacher_file
from focal.config import Config
from focal.errors import run_main
from focal.job import Job, run_job


def main() -> int:
    """Start workers if several devices are asked for, else train in this process."""
    return run_job(__doc__, train, check)


def check(config: Config) -> None:
    """Refuse a teacher that is not there, before anything slow is done; a cloud job has yet to bring it."""
    from focal.cloud.storage import is_cloud_job

    if not is_cloud_job(config):
        check_teacher_file(config.run)


def train(job: Job) -> int:
    """Build data, network and step, resume if asked to, and run the loop; return the exit code."""
    from focal.data import EvalData, TrainData, check_data, check_ranks_agree, with_classes_of
    from focal.data.transforms.on_device import Normalize
    from focal.distributed.agreement import file_listing
    from focal.evaluation import EvalStep
    from focal.report import report_if_possible
    from focal.trainers.plan import describe_plan, planned_world_size
    from focal.trainers.setup import build_network, build_train_step, open_outputs, resume_state
    from focal.trainers.trainer import Trainer

    config, device, storage = job.storage.with_teacher(job.config), job.device, job.storage
    check_teacher_file(config.run)

    layout = check_data(config, storage.data_folder())
    config, world_size = with_classes_of(layout, config), planned_world_size(config, device)
    check_ranks_agree(config, device, layout, [file_listing("teacher", config.run.teacher)])
    train_data = TrainData(config, layout, device.rank, world_size)
    eval_data = EvalData(config, layout, device.rank, world_size)

    network = build_network(config, layout.known_class_names)
    train_step = build_train_step(config, network, train_data.batches_per_epoch, device, layout.known_class_names)
    eval_step = EvalStep(network, Normalize(config.data), return_logits=True)

    progress = resume_state(
        config, train_step, train_data.batches_per_epoch, device, storage.output_folder, layout.known_class_names
    )
    if config.run.dry_run:
        plan = describe_plan(config, device, train_step, train_data, eval_data, progress, storage)
        if device.is_main:
            print(plan)
        return 0
    outputs = open_outputs(config, device, progress, train_data.batches_per_epoch, storage)

    trainer = Trainer(config, device, train_step, eval_step, train_data, eval_data, progress, outputs, job.stop)
    exit_code = trainer.run()
    if exit_code == 0 and device.is_main and config.run.report:
        report_if_possible(storage.output_folder, layout.folder)
    return exit_code


if __name__ == "__main__":
    run_main(main)
