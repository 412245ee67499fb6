"""Every configuration key with its type, default, range and meaning, in one frozen dataclass per section.

YAML keys and flags are flat (`batch_size: 64`, `--batch_size 64`), and each key belongs to exactly one section. Keys
keep the names that they have in the original report of Focal-fast-S or in the authors' constructors. The section of the
job itself is in run_section.py.

"Step" means one optimizer update. With `accumulation_step: k` a step consumes k micro-batches on each device.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Optional, Union

from focal.config.fields import ConfigError, key
from focal.config.run_section import RunConfig

__all__ = [
    "DEFAULT_ARCH",
    "SECTIONS",
    "AugmentConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "StepConfig",
    "may_change_on_resume",
]

DEFAULT_ARCH = "focalv2_small_useconv_patch4_window7_224"


@dataclass(frozen=True)
class ModelConfig:
    """The network: the arguments of the authors' `FocalTransformer` constructors, versions 1 and 2."""

    arch: str = key(
        DEFAULT_ARCH, "Model name: focal_... is version 1, focalv2_... version 2; see scripts/list_models.py."
    )
    focal_version: int = key(
        2,
        "Attention of version 1 (the window, its surroundings and pooled windows) or 2 (the top-K closest tokens).",
        choices=(1, 2),
    )
    num_classes: int = key(1000, "Number of classes; 0: no head, pooled features; -1: as many as the data has.", low=-1)
    in_channels: int = key(3, "Number of channels of the input image.", low=1)
    image_size: Union[int, tuple[int, ...]] = key(
        224, "Height and width of the input in pixels, or [height, width].", low=1
    )
    patch_size: int = key(4, "Patch size and stride of the stem; ignored with use_conv_embed.", low=1)
    embed_dim: int = key(96, "Channels of the first stage; they double with each stage.", low=1)
    depths: tuple[int, ...] = key((2, 2, 6, 2), "Number of blocks of each stage.", low=1)
    num_heads: tuple[int, ...] = key((3, 6, 12, 24), "Number of attention heads of each stage.", low=1)
    window_size: int = key(7, "Side length of a query window in tokens.", low=1)
    mlp_ratio: float = key(4.0, "Hidden channels of each MLP, as a multiple of its input channels.", above=0.0)
    qkv_bias: bool = key(True, "Add a learnable bias to queries, keys and values.")
    qk_scale: Optional[float] = key(None, "Scale of the queries; none means head_dim ** -0.5.")
    drop_rate: float = key(0.0, "Dropout rate of embeddings, projections and MLPs.", low=0.0, below=1.0)
    attn_drop_rate: float = key(0.0, "Dropout rate of the attention weights.", low=0.0, below=1.0)
    drop_path_rate: float = key(
        0.1, "Stochastic depth rate of the last block; the rate rises linearly from 0.", low=0.0, below=1.0
    )
    ape: bool = key(False, "Add a learnable absolute position embedding.")
    patch_norm: bool = key(True, "Apply LayerNorm after the stem.")
    use_shift: bool = key(False, "Shift the windows of every second block, as Swin does.")
    focal_stages: tuple[int, ...] = key((0, 1, 2, 3), "Indices of the stages that use pooled focal levels.", low=0)
    focal_levels: tuple[int, ...] = key(
        (1, 1, 1, 1), "Number of focal levels of each stage, including the finest.", low=0
    )
    focal_windows: tuple[int, ...] = key(
        (7, 5, 3, 1), "Version 1: side length of each stage's focal window, in pooled windows.", low=1
    )
    focal_topK: int = key(64, "Version 2: number of closest tokens attended to at each focal level.", low=1)
    focal_pool: str = key("fc", "How a window is pooled into one token.", choices=("fc", "conv", "mean", "max", "none"))
    expand_sizes: tuple[int, ...] = key(
        (3, 3, 3, 3), "Version 1: number of surrounding tokens on each side of a window, per stage.", low=0
    )
    expand_layer: str = key(
        "all",
        "Version 1: even or odd names the blocks that do NOT attend to the surroundings; all excludes none.",
        choices=("all", "even", "odd"),
    )
    use_conv_embed: bool = key(
        False, "Use overlapping convolutions for the stem (7x7, stride 4) and downsampling (3x3, stride 2)."
    )
    use_layerscale: bool = key(False, "Scale both branches of each block by a learnable factor per channel.")
    layerscale_value: float = key(1e-4, "Initial value of the LayerScale factors.", above=0.0)
    use_pre_norm: bool = key(False, "Apply GroupNorm with one group before each downsampling.")
    pad_windows: bool = key(
        False, "Version 2 or use_shift: pad feature maps that windows do not tile, instead of refusing them."
    )
    recompute: bool = key(
        False, "Recompute each block in the backward pass, which saves memory and costs time.", may_change=True
    )

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
    """Where the images are, and how they are read and batched."""

    data_url: str = key(
        "./data/imagenet", "Folder that contains train/ and val/ (or imagenet/train, imagenet/val).", may_change=True
    )
    set: str = key(
        "ImageNet",
        "Kind of dataset; ImageNet means one folder per class, or MindRecord files.",
        choices=("ImageNet",),
        may_change=True,
    )
    batch_size: int = key(64, "Images per device and micro-batch.", low=1)
    eval_batch_size: Optional[int] = key(
        None, "Images per device and batch in evaluation; none means batch_size.", low=1, may_change=True
    )
    num_parallel_workers: int = key(8, "Workers per device that read and augment images.", low=1, may_change=True)
    worker_processes: bool = key(
        False, "Run these workers as processes instead of threads; the batches are the same.", may_change=True
    )
    crop_ratio: float = key(
        0.875,
        "Evaluation: side of the centre crop as a fraction of the resized shorter side.",
        above=0.0,
        high=1.0,
        may_change=True,
    )
    image_mean: tuple[float, ...] = key(
        (0.485, 0.456, 0.406), "Mean of each channel, for pixel values in [0, 1].", length=3
    )
    image_std: tuple[float, ...] = key(
        (0.229, 0.224, 0.225), "Standard deviation of each channel, for pixel values in [0, 1].", length=3, above=0.0
    )
    skip_unreadable: bool = key(
        False, "Evaluation: skip images that cannot be read instead of failing.", may_change=True
    )


@dataclass(frozen=True)
class AugmentConfig:
    """Training augmentation; every key means what it means in timm."""

    interpolation: str = key(
        "bicubic", "Interpolation of crops and resizes.", choices=("bicubic", "bilinear", "random")
    )
    crop_scale: tuple[float, ...] = key(
        (0.08, 1.0), "Range of the random crop's area, as a fraction of the image.", length=2, above=0.0, high=1.0
    )
    crop_aspect: tuple[float, ...] = key(
        (3 / 4, 4 / 3), "Range of the random crop's aspect ratio, width / height.", length=2, above=0.0
    )
    hflip: float = key(0.5, "Probability of a horizontal flip.", low=0.0, high=1.0)
    aug_repeats: int = key(
        1,
        "Repeated augmentation: copies of an image in an epoch, each augmented on its own, while an epoch of as many "
        "steps visits that fraction of the images; 1 disables it.",
        low=1,
    )
    auto_augment: str = key("rand-m9-mstd0.5-inc1", "RandAugment policy in timm's notation, or none.")
    color_jitter: float = key(
        0.4, "Strength of brightness, contrast and saturation jitter; used if auto_augment is none.", low=0.0
    )
    re_prob: float = key(0.25, "Probability of random erasing.", low=0.0, high=1.0)
    re_mode: str = key(
        "pixel",
        "Fill of erased areas: zeros (const), one random colour (rand) or noise (pixel).",
        choices=("const", "rand", "pixel"),
    )
    re_count: int = key(1, "Maximum number of erased areas per image.", low=1)
    mix_up: float = key(0.8, "Mixup alpha; 0 disables Mixup.", low=0.0)
    cutmix: float = key(1.0, "CutMix alpha; 0 disables CutMix.", low=0.0)
    mixup_prob: float = key(1.0, "Probability of mixing a batch, pair or image (see mixup_mode).", low=0.0, high=1.0)
    switch_prob: float = key(0.5, "Probability of CutMix rather than Mixup when both are enabled.", low=0.0, high=1.0)
    mixup_mode: str = key(
        "batch", "Draw mixing parameters once per batch, pair or image (elem).", choices=("batch", "pair", "elem")
    )
    mixup_off_epoch: int = key(
        0, "Mix images (Mixup and CutMix) in this many epochs only, counted from the first; 0: in all.", low=0
    )
    label_smoothing: float = key(
        0.1, "Fraction of the target that is spread evenly over all classes.", low=0.0, below=1.0
    )


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer and learning-rate schedule. Rates are given for a total batch of 512 and scaled linearly."""

    optimizer: str = key(
        "adamw",
        "Optimizer; adam_weight_decay is the report's, which lacks adamw's bias correction.",
        choices=("adamw", "adam_weight_decay", "momentum", "lamb"),
    )
    lr_scheduler: str = key(
        "cosine_lr",
        "Shape of the learning-rate schedule between warm-up and cool-down.",
        choices=("cosine_lr", "constant_lr", "multistep_lr", "exp_lr", "polynomial"),
    )
    base_lr: float = key(5e-4, "Peak learning rate.", above=0.0)
    min_lr: float = key(5e-6, "Lower bound of the learning rate throughout the training.", low=0.0)
    warmup_length: int = key(0, "Epochs of linear warm-up.", low=0)
    warmup_lr: float = key(1e-5, "Learning rate at the start of the warm-up, but at least min_lr.", low=0.0)
    cool_length: int = key(0, "Epochs of cool-down at the end, with constant rate cool_lr.", low=0)
    cool_lr: float = key(5e-6, "Learning rate of the cool-down, but at least min_lr.", low=0.0)
    lr_adjust: float = key(30.0, "multistep_lr: epochs between drops.", above=0.0)
    lr_gamma: float = key(0.97, "Factor of each drop (multistep_lr) or of each epoch (exp_lr).", above=0.0, high=1.0)
    lr_power: float = key(1.0, "polynomial: exponent of the decay.", above=0.0)
    epochs: int = key(300, "Number of epochs, including warm-up and cool-down.", low=1, high=1_000_000)
    beta: tuple[float, ...] = key(
        (0.9, 0.999), "Decay rates of Adam's first and second moments.", length=2, low=0.0, below=1.0
    )
    eps: float = key(1e-8, "Adam's epsilon.", above=0.0)
    momentum: float = key(0.9, "Momentum of the momentum optimizer.", low=0.0, below=1.0)
    weight_decay: float = key(0.05, "Decoupled weight decay; biases, norms and absolute_pos_embed are exempt.", low=0.0)
    layer_decay: float = key(
        1.0, "Fine-tuning: factor on the learning rate for each layer below the head.", above=0.0, high=1.0
    )
    freeze_stages: int = key(
        0, "Fine-tuning: number of stages to freeze, counted from the input; the first includes the stem.", low=0
    )


@dataclass(frozen=True)
class StepConfig:
    """Loss, distillation, precision, loss scale, clipping, accumulation and EMA of a training step."""

    loss: str = key(
        "cross_entropy",
        "Training loss: cross-entropy over the classes, or binary cross-entropy of each class for itself (bce).",
        choices=("cross_entropy", "bce"),
    )
    bce_target_thresh: Optional[float] = key(
        None,
        "With loss bce: mixed and smoothed targets above this count as 1, others as 0; none leaves them as they are.",
        low=0.0,
        below=1.0,
    )
    bce_sum: bool = key(False, "With loss bce: sum over the classes instead of taking their mean.")
    distillation: str = key(
        "none",
        "Learn from the logits of the network in `teacher` too: from its probabilities (soft) or decisions (hard).",
        choices=("none", "soft", "hard"),
    )
    distillation_alpha: float = key(
        0.5, "Weight of the distillation in the loss; the other loss has 1 minus this.", above=0.0, high=1.0
    )
    distillation_tau: float = key(3.0, "With distillation soft: temperature of both distributions.", above=0.0)
    amp_level: str = key(
        "O0",
        "Precision: O0 is float32, O1 to O3 use float16, bf16 uses bfloat16; see docs/training.md.",
        choices=("O0", "O1", "O2", "O3", "bf16"),
    )
    keep_bn_fp32: bool = key(True, "Keep normalisation layers in float32 even at O3.")
    attention: str = key(
        "auto",
        "How attention is computed: by matrix products, by MindSpore's fused operator (flash: Atlas A2 and later, not "
        "at O0), or by the operator wherever it agrees with the products (auto); see docs/training.md.",
        choices=("auto", "products", "flash"),
        may_change=True,
    )
    loss_scale: float = key(
        1024.0, "Loss scale: its initial value if dynamic, else its fixed value.", low=1.0, high=2.0**32
    )
    is_dynamic_loss_scale: bool = key(
        True, "Halve the loss scale on overflow and double it after scale_window finite steps."
    )
    scale_window: int = key(2000, "Consecutive finite steps after which the dynamic loss scale doubles.", low=1)
    use_global_norm: bool = key(True, "Clip gradients by their global norm.")
    clip_global_norm_value: float = key(5.0, "Maximum global L2 norm of the gradients.", above=0.0)
    accumulation_step: int = key(1, "Number of micro-batches whose mean gradient makes one step.", low=1)
    enable_ema: bool = key(True, "Maintain an exponential moving average (EMA) of the weights.")
    ema_decay: float = key(0.99992, "Decay of the EMA per step.", low=0.0, below=1.0)
    ema_warmup: bool = key(False, "Limit the EMA's decay to (1 + step) / (10 + step) in early steps.")
    max_nonfinite_steps: int = key(
        100, "Stop the training after this many consecutive non-finite steps.", low=1, may_change=True
    )


@dataclass(frozen=True)
class Config:
    """A complete, checked configuration. Functions should take the section they need rather than all of it."""

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


def may_change_on_resume(name: str) -> bool:
    """Whether a resumed training may use another value of the key `name`; False if there is no such key."""
    fields = (field for section in SECTIONS.values() for field in dataclasses.fields(section))
    return any(field.name == name and field.metadata["may_change"] for field in fields)
