"""The sections of a configuration: one frozen dataclass each, every key with its type, default, range and meaning.

YAML keys and flags are flat (`batch_size: 64`, `--batch_size 64`); each key belongs to exactly one section. Where the
report of Focal-fast-S or the authors' constructor has a name for a key, that name is kept.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Optional, Union

from focal.errors import UserError


class ConfigError(UserError):
    """A configuration that cannot be used; the message names the field, its value and the way out."""


def key(default: Any, help: str, **limits: Any) -> Any:
    """A dataclass field with its meaning and limits.

    Args:
        default: value when neither YAML nor flags name the key.
        help: one line, shown by `--help`.
        limits: `choices`; `low`/`high` inclusive bounds; `above`/`below` exclusive bounds; `length` of a list. Bounds
            hold for every entry of a list.
    """
    return dataclasses.field(default=default, metadata={"help": help, **limits})


ZERO_TO_ONE = {"low": 0.0, "high": 1.0}
DEFAULT_ARCH = "focalv2_small_useconv_patch4_window7_224"


@dataclass(frozen=True)
class ModelConfig:
    """The network: the arguments of the authors' `FocalTransformer` constructors, versions 1 and 2."""

    arch: str = key(DEFAULT_ARCH, "model name; focal_... is version 1, focalv2_... version 2; scripts/list_models.py")
    focal_version: int = key(
        2, "1: windows, rolled neighbours, pooled windows; 2: top-K closest tokens", choices=(1, 2)
    )
    num_classes: int = key(1000, "outputs of the head; 0 gives the pooled features", low=0)
    in_channels: int = key(3, "channels of the input image", low=1)
    image_size: Union[int, tuple[int, ...]] = key(224, "input height and width in pixels, or [height, width]", low=1)
    patch_size: int = key(4, "patch size, and stride, of a stem without convolutional embedding", low=1)
    embed_dim: int = key(96, "channels of stage 0; doubles with each stage", low=1)
    depths: tuple[int, ...] = key((2, 2, 6, 2), "blocks per stage", low=1)
    num_heads: tuple[int, ...] = key((3, 6, 12, 24), "attention heads per stage", low=1)
    window_size: int = key(7, "side of a window of queries, in tokens", low=1)
    mlp_ratio: float = key(4.0, "hidden channels of the MLP over its channels", above=0.0)
    qkv_bias: bool = key(True, "learnable bias of query, key and value")
    qk_scale: Optional[float] = key(None, "factor on the queries; none: head_dim ** -0.5")
    drop_rate: float = key(0.0, "dropout of embeddings, projections and MLPs", low=0.0, below=1.0)
    attn_drop_rate: float = key(0.0, "dropout of attention weights", low=0.0, below=1.0)
    drop_path_rate: float = key(0.1, "stochastic depth of the last block; rises linearly from 0", low=0.0, below=1.0)
    ape: bool = key(False, "learnable absolute position embedding")
    patch_norm: bool = key(True, "LayerNorm after the stem")
    use_shift: bool = key(False, "shift the windows of every second block, as Swin does")
    focal_stages: tuple[int, ...] = key((0, 1, 2, 3), "stages with pooled focal levels", low=0)
    focal_levels: tuple[int, ...] = key((1, 1, 1, 1), "focal levels per stage, the finest included", low=0)
    focal_windows: tuple[int, ...] = key((7, 5, 3, 1), "version 1: focal window per stage, in pooled windows", low=1)
    focal_topK: int = key(64, "version 2: closest tokens per focal level", low=1)
    focal_pool: str = key("fc", "pooling of windows", choices=("fc", "conv", "mean", "max", "none"))
    expand_sizes: tuple[int, ...] = key((3, 3, 3, 3), "version 1: surrounding tokens per stage", low=0)
    expand_layer: str = key(
        "all", "even, odd: blocks that do NOT see surroundings; all: none", choices=("all", "even", "odd")
    )
    use_conv_embed: bool = key(False, "overlapping convolutions as stem (7x7/4) and downsampling (3x3/2)")
    use_layerscale: bool = key(False, "learnable scale per channel on both branches of a block")
    layerscale_value: float = key(1e-4, "initial value of that scale", above=0.0)
    use_pre_norm: bool = key(False, "GroupNorm(1) before each downsampling")
    pad_windows: bool = key(False, "version 2, use_shift: pad maps that windows do not tile instead of refusing them")
    recompute: bool = key(False, "recompute blocks in the backward pass: less memory, more time")

    @property
    def drop_path_rates(self) -> tuple[float, ...]:
        """Rate of drop path of each block, from the first to the last: linear from 0 to `drop_path_rate`."""
        blocks = sum(self.depths)
        return tuple(self.drop_path_rate * index / max(blocks - 1, 1) for index in range(blocks))

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        if isinstance(self.image_size, int):
            return (self.image_size, self.image_size)
        return (self.image_size[0], self.image_size[1])


@dataclass(frozen=True)
class DataConfig:
    """Where images come from and how they are read and batched."""

    data_url: str = key("./data/imagenet", "folder with train/ and val/ (or imagenet/train, imagenet/val)")
    set: str = key("ImageNet", "kind of data: ImageNet means a folder per class, or MindRecord", choices=("ImageNet",))
    batch_size: int = key(64, "images per device and step", low=1)
    eval_batch_size: Optional[int] = key(None, "images per device in evaluation; none: batch_size", low=1)
    num_parallel_workers: int = key(8, "workers that read and augment images, per device", low=1)
    worker_processes: bool = key(False, "each such worker is a process instead of a thread; the batches are the same")
    crop_ratio: float = key(0.875, "evaluation: centre crop over the resized shorter side", above=0.0, high=1.0)
    image_mean: tuple[float, ...] = key((0.485, 0.456, 0.406), "mean per channel, of pixels in 0..1", length=3)
    image_std: tuple[float, ...] = key((0.229, 0.224, 0.225), "deviation per channel", length=3, above=0.0)
    skip_unreadable: bool = key(False, "evaluation leaves out unreadable images instead of failing")


@dataclass(frozen=True)
class AugmentConfig:
    """Training augmentation; each key means what it means in timm."""

    interpolation: str = key("bicubic", "of crops and resizes", choices=("bicubic", "bilinear", "random"))
    crop_scale: tuple[float, ...] = key((0.08, 1.0), "area range of the random crop", length=2, above=0.0, high=1.0)
    crop_aspect: tuple[float, ...] = key((3 / 4, 4 / 3), "width/height range of the random crop", length=2, above=0.0)
    hflip: float = key(0.5, "probability of a horizontal flip", **ZERO_TO_ONE)
    auto_augment: str = key("rand-m9-mstd0.5-inc1", "RandAugment in timm's grammar, or none")
    color_jitter: float = key(0.4, "brightness, contrast, saturation jitter where auto_augment is none", low=0.0)
    re_prob: float = key(0.25, "probability of random erasing", **ZERO_TO_ONE)
    re_mode: str = key("pixel", "erase with zeros, one random colour, or noise", choices=("const", "rand", "pixel"))
    re_count: int = key(1, "most areas erased per image", low=1)
    mix_up: float = key(0.8, "Mixup alpha; 0: off", low=0.0)
    cutmix: float = key(1.0, "CutMix alpha; 0: off", low=0.0)
    mixup_prob: float = key(1.0, "probability that a batch (pair, image) is mixed", **ZERO_TO_ONE)
    switch_prob: float = key(0.5, "probability of CutMix where both are on", **ZERO_TO_ONE)
    mixup_mode: str = key("batch", "one draw per batch, pair or image", choices=("batch", "pair", "elem"))
    label_smoothing: float = key(0.1, "share of the target spread over all classes", low=0.0, below=1.0)


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer and learning-rate schedule. Rates are for a total batch of 512 and scaled linearly from there."""

    optimizer: str = key("adamw", "adamw is bias-corrected; adam_weight_decay is not (the report's)",
                         choices=("adamw", "adam_weight_decay", "momentum", "lamb"))  # fmt: skip
    lr_scheduler: str = key("cosine_lr", "shape of the schedule",
                            choices=("cosine_lr", "constant_lr", "multistep_lr", "exp_lr", "polynomial"))  # fmt: skip
    base_lr: float = key(5e-4, "peak learning rate", above=0.0)
    min_lr: float = key(5e-6, "floor of the learning rate", low=0.0)
    warmup_length: int = key(0, "epochs of linear warm-up", low=0)
    warmup_lr: float = key(1e-5, "learning rate at the first step of warm-up (min_lr is a floor for it too)", low=0.0)
    cool_length: int = key(0, "last epochs, at cool_lr", low=0)
    cool_lr: float = key(5e-6, "learning rate of the last epochs (min_lr is a floor for it too)", low=0.0)
    lr_adjust: float = key(30.0, "multistep_lr: epochs between drops", above=0.0)
    lr_gamma: float = key(0.97, "multistep_lr, exp_lr: factor per drop or epoch", above=0.0, high=1.0)
    lr_power: float = key(1.0, "polynomial: exponent of the decay", above=0.0)
    epochs: int = key(300, "epochs, warm-up and cool-down included", low=1, high=1_000_000)
    beta: tuple[float, ...] = key((0.9, 0.999), "Adam's decay rates of both moments", length=2, low=0.0, below=1.0)
    eps: float = key(1e-8, "Adam's epsilon", above=0.0)
    momentum: float = key(0.9, "of the momentum optimizer", low=0.0, below=1.0)
    weight_decay: float = key(0.05, "decoupled weight decay; none on biases, norms, absolute_pos_embed", low=0.0)
    layer_decay: float = key(1.0, "learning rate factor per layer below the head (fine-tuning)", above=0.0, high=1.0)
    freeze_stages: int = key(0, "fine-tuning: stages frozen from the input on, the stem with the first", low=0)


@dataclass(frozen=True)
class StepConfig:
    """What one training step does besides forward, backward and update."""

    amp_level: str = key("O0", "O0 float32; O1..O3 float16; bf16; see README", choices=("O0", "O1", "O2", "O3", "bf16"))
    keep_bn_fp32: bool = key(True, "O3: normalisation layers in float32 all the same")
    loss_scale: float = key(1024.0, "initial (or fixed) factor on the loss", low=1.0, high=2.0**32)
    is_dynamic_loss_scale: bool = key(True, "halve the scale on overflow, double it after scale_window good steps")
    scale_window: int = key(2000, "good steps before the dynamic scale doubles", low=1)
    use_global_norm: bool = key(True, "clip gradients by their global norm")
    clip_global_norm_value: float = key(5.0, "largest global L2 norm of the gradients", above=0.0)
    accumulation_step: int = key(1, "batches whose mean gradient makes one update", low=1)
    enable_ema: bool = key(True, "keep an exponential moving average of the weights")
    ema_decay: float = key(0.99992, "decay of that average per update", low=0.0, below=1.0)
    ema_warmup: bool = key(False, "decay is min(ema_decay, (1 + step) / (10 + step))")
    max_nonfinite_steps: int = key(100, "non-finite steps in a row that stop training", low=1)


@dataclass(frozen=True)
class RunConfig:
    """The job: devices, files, logging, export."""

    train_url: str = key("./output", "folder that takes results")
    device_target: str = key("Ascend", "where to run", choices=("Ascend", "CPU", "GPU"))
    device_num: int = key(1, "devices (processes) in data parallel", low=1)
    device_id: int = key(0, "device of a single-device job", low=0)
    node_num: int = key(1, "servers in the job", low=1)
    node_rank: int = key(0, "number of this server", low=0)
    master_addr: str = key("127.0.0.1", "address of server 0")
    master_port: int = key(0, "port of the scheduler on server 0; 0: a free one (one server only)", low=0, high=65535)
    graph_mode: int = key(0, "0: graph; 1: PyNative, for debugging", choices=(0, 1))
    dataset_sink_mode: bool = key(False, "Ascend: feed the device from a queue")
    seed: int = key(0, "of weights, data order, augmentation, drop path", low=0, high=2**31 - 1)
    pretrained: Optional[str] = key(None, "checkpoint whose weights to load")
    use_ema: bool = key(False, "eval.py, export.py: the averaged weights of the checkpoint")
    resume: Optional[str] = key(None, "continue from a checkpoint; auto: the newest whole one in train_url")
    allow_config_change: bool = key(False, "resume although a setting that matters has changed")
    eval_every: int = key(1, "epochs between evaluations", low=1)
    save_every: int = key(1, "epochs between checkpoints", low=1)
    save_steps: int = key(0, "updates between checkpoints inside an epoch; 0: none", low=0)
    keep_checkpoint_max: int = key(2, "newest checkpoints kept", low=1)
    keep_best_max: int = key(1, "best checkpoints kept", low=1)
    log_steps: int = key(50, "updates between progress lines inside an epoch", low=1)
    max_steps: int = key(0, "stop after this many updates; 0: never (for trials)", low=0)
    json: Optional[str] = key(None, "eval.py: also write the result to this JSON file")
    file_format: str = key("MINDIR", "export.py: format", choices=("MINDIR", "AIR", "ONNX"))
    file_name: Optional[str] = key(None, "export.py: output file; none: train_url/<arch>")
    run_openi: bool = key(False, "cloud job on OpenI or ModelArts: copy data in and results out")
    step_timeout: float = key(1800.0, "several devices: seconds without a step that end the job; 0: never", low=0.0)
    cache_dir: str = key("/cache", "cloud job: local folder that takes data, results and checkpoints")


@dataclass(frozen=True)
class Config:
    """A whole, checked configuration. Pass a section on, not the whole."""

    model: ModelConfig
    data: DataConfig
    augment: AugmentConfig
    optim: OptimConfig
    step: StepConfig
    run: RunConfig


SECTIONS: dict[str, type] = {
    "model": ModelConfig,
    "data": DataConfig,
    "augment": AugmentConfig,
    "optim": OptimConfig,
    "step": StepConfig,
    "run": RunConfig,
}
