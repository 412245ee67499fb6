"""The keys of the job itself, which hardly ever affect what is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from focal.config.fields import key


@dataclass(frozen=True)
class RunConfig:
    """The job: devices, files, logging and export."""

    train_url: str = key("./output", "Output folder.", may_change=True)
    device_target: str = key(
        "auto",
        "Kind of device to run on; auto takes an Ascend or, on a machine without any sign of one, the CPU.",
        choices=("auto", "Ascend", "CPU", "GPU"),
        may_change=True,
    )
    # With another device_num, checkpoint/resume.py resumes at the same fraction of the epoch.
    device_num: int = key(
        1, "Number of data-parallel devices (one process each), over all servers.", low=1, may_change=True
    )
    device_id: int = key(0, "Index of the device that a single-device job uses.", low=0, may_change=True)
    node_num: int = key(1, "Number of servers.", low=1, may_change=True)
    node_rank: int = key(0, "Index of this server.", low=0, may_change=True)
    master_addr: str = key("127.0.0.1", "Address of server 0.", may_change=True)
    master_port: int = key(
        0,
        "Port of the scheduler on server 0; 0 picks a free port (single server only).",
        low=0,
        high=65535,
        may_change=True,
    )
    graph_mode: int = key(
        0, "MindSpore's mode: 0 for graph mode, 1 for PyNative (debugging).", choices=(0, 1), may_change=True
    )
    jit_level: str = key(
        "auto",
        "How MindSpore compiles for an Ascend: kernel by kernel (O0), with fused kernels (O1) or one whole graph (O2); "
        "auto takes what suits the chip. On a CPU, O1 fuses elementwise operations and auto does not.",
        choices=("auto", "O0", "O1", "O2"),
        may_change=True,
    )
    kernel_launch_group: int = key(
        0, "Threads that launch kernels at jit_level O0; 0 leaves that to one thread.", low=0, high=64, may_change=True
    )
    compile_cache: Optional[str] = key(
        None, "Folder that keeps the compiled training step for the next start; none disables it.", may_change=True
    )
    dataset_sink_mode: bool = key(False, "Ascend: feed the device through a queue.", may_change=True)
    seed: int = key(0, "Random seed for initialisation, data order, augmentation and drop path.", low=0, high=2**31 - 1)
    pretrained: Optional[str] = key(None, "Checkpoint to load weights from.", may_change=True)
    use_ema: bool = key(False, "Load the EMA weights of the checkpoint.", may_change=True)
    teacher: Optional[str] = key(
        None, "Checkpoint of the teacher for distillation, a Focal Transformer with the same classes.", may_change=True
    )
    teacher_arch: Optional[str] = key(
        None,
        "Published model that the teacher is, if its checkpoint does not say so (converted weights).",
    )
    resume: Optional[str] = key(
        None, "Checkpoint to resume from; auto means the newest intact one in train_url.", may_change=True
    )
    allow_config_change: bool = key(
        False,
        "Resume even if settings that affect the training or the names of the classes have changed; eval.py: evaluate "
        "data whose class names differ from the checkpoint's.",
        may_change=True,
    )
    eval_every: int = key(1, "Epochs between evaluations.", low=1, may_change=True)
    save_every: int = key(1, "Epochs between checkpoints.", low=1, may_change=True)
    save_steps: int = key(
        0, "Steps between additional checkpoints within an epoch; 0 disables them.", low=0, may_change=True
    )
    keep_checkpoint_max: int = key(2, "Number of most recent checkpoints to keep.", low=1, may_change=True)
    keep_best_max: int = key(1, "Number of best checkpoints to keep.", low=1, may_change=True)
    log_steps: int = key(50, "Steps between progress lines within an epoch.", low=1, may_change=True)
    max_steps: int = key(0, "Stop after this many steps, for trial runs; 0 means no limit.", low=0, may_change=True)
    dry_run: bool = key(
        False,
        "train.py: check settings, data and device, print the plan, and neither train nor write.",
        may_change=True,
    )
    json: Optional[str] = key(None, "eval.py: JSON file to write the results to as well.", may_change=True)
    predictions: Optional[str] = key(
        None, "eval.py: NPZ file to write the prediction for each image to, for scripts/report.py.", may_change=True
    )
    report: bool = key(
        True, "train.py: write report.html at the end if the packages for it are installed.", may_change=True
    )
    file_format: str = key(
        "MINDIR", "export.py: format of the exported model.", choices=("MINDIR", "AIR", "ONNX"), may_change=True
    )
    file_name: Optional[str] = key(None, "export.py: output file; none means train_url/<arch>.", may_change=True)
    run_openi: bool = key(
        False, "Run as a cloud job on OpenI or ModelArts: copy the data in and the results out.", may_change=True
    )
    step_timeout: float = key(
        1800.0,
        "Several devices: end the job after this many seconds without a step; 0 disables the timeout.",
        low=0.0,
        may_change=True,
    )
    cache_dir: str = key("/cache", "Cloud job: local folder for data, results and checkpoints.", may_change=True)
