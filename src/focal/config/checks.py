"""Refuse combinations of settings that cannot work, before any device is used."""

from __future__ import annotations

from focal.config.rand_augment_policy import parse_policy
from focal.config.schema import Config, ConfigError

_MOST_STAGES = 10


def check_combinations(config: Config) -> None:
    """Raise `ConfigError` for the first combination of settings that cannot work."""
    _check_model(config)
    _check_augment(config)
    _check_schedule(config)
    _check_run(config)
    _check_flash_attention(config)
    _check_loss(config)


def _check_model(config: Config) -> None:
    model = config.model
    stages = len(model.depths)
    if not stages:
        raise ConfigError("depths: [] defines no stages; give the number of blocks of each, e.g. [2, 2, 6, 2]")
    if stages > _MOST_STAGES:
        raise ConfigError(f"depths: {stages} stages are more than {_MOST_STAGES}; each halves the map")
    for name in ("num_heads", "focal_levels", "focal_windows", "expand_sizes"):
        entries = getattr(model, name)
        if len(entries) != stages:
            raise ConfigError(f"{name}: {list(entries)} has {len(entries)} entries, but depths has {stages}")
    for stage, heads in enumerate(model.num_heads):
        dim = model.embed_dim * 2**stage
        if dim % heads:
            raise ConfigError(f"num_heads: stage {stage} has {dim} channels, which is not a multiple of {heads} heads")
    if not isinstance(model.image_size, int) and len(model.image_size) != 2:
        raise ConfigError(f"image_size: {list(model.image_size)} must be one number or [height, width]")
    beyond = [stage for stage in model.focal_stages if stage >= stages]
    if beyond:
        raise ConfigError(
            f"focal_stages: stage {beyond[0]} does not exist; depths has {stages} stages, numbered from 0"
        )
    if config.optim.freeze_stages > stages:
        raise ConfigError(f"freeze_stages: {config.optim.freeze_stages} is more than the {stages} stages of depths")


def _check_augment(config: Config) -> None:
    augment = config.augment
    if augment.auto_augment != "none":
        parse_policy(augment.auto_augment)
    for name in ("crop_scale", "crop_aspect"):
        low, high = getattr(augment, name)
        if low > high:
            raise ConfigError(f"{name}: [{low}, {high}] must not decrease")
    if (augment.mix_up or augment.cutmix) and config.data.batch_size % 2:
        raise ConfigError(
            f"batch_size: {config.data.batch_size} must be even with mix_up or cutmix; change it, or set both of them "
            "to 0"
        )


def _check_schedule(config: Config) -> None:
    optim = config.optim
    if optim.warmup_length + optim.cool_length > optim.epochs:
        raise ConfigError(
            f"epochs: {optim.epochs} is less than warmup_length {optim.warmup_length} + cool_length {optim.cool_length}"
        )
    if max(optim.beta) > 1 - 1e-7:
        raise ConfigError(f"beta: {max(optim.beta)} rounds to 1 in float32; use at most 0.9999999")
    if optim.min_lr > optim.base_lr:
        raise ConfigError(f"min_lr: {optim.min_lr} is greater than base_lr {optim.base_lr}")


def _check_run(config: Config) -> None:
    run = config.run
    if config.step.amp_level == "bf16" and run.device_target == "CPU":
        raise ConfigError("amp_level: bf16 is not supported on CPU; use O0, or O1 to try float16")
    if run.dataset_sink_mode and run.device_target not in ("Ascend", "auto"):
        raise ConfigError(
            f"dataset_sink_mode: requires device_target Ascend, not {run.device_target}; set dataset_sink_mode to False"
        )
    if run.kernel_launch_group and run.jit_level != "O0":
        raise ConfigError(
            f"kernel_launch_group: {run.kernel_launch_group} requires jit_level O0, not {run.jit_level}; set it to 0"
        )
    if run.node_rank >= run.node_num:
        raise ConfigError(f"node_rank: {run.node_rank} must be less than node_num {run.node_num}")
    if run.device_num % run.node_num:
        raise ConfigError(
            f"device_num: {run.device_num} (over all servers) must be a multiple of node_num {run.node_num}"
        )
    if run.node_num > 1 and run.master_port == 0:
        raise ConfigError("master_port: 0 works on a single server only; with several, choose a port, e.g. 8118")


def _check_flash_attention(config: Config) -> None:
    if config.step.attention != "flash":
        return
    hint = "use auto, which takes products where flash cannot be had"
    if config.run.device_target not in ("Ascend", "auto"):
        raise ConfigError(f"attention: flash requires device_target Ascend, not {config.run.device_target}; {hint}")
    if config.step.amp_level == "O0":
        raise ConfigError(f"attention: flash has no float32, which amp_level O0 asks for; {hint}, or O1")
    if config.model.attn_drop_rate:
        raise ConfigError(f"attention: flash has no attn_drop_rate, which is {config.model.attn_drop_rate}; {hint}")


def _check_loss(config: Config) -> None:
    step, run = config.step, config.run
    if step.loss != "bce" and (step.bce_target_thresh is not None or step.bce_sum):
        name = "bce_sum" if step.bce_sum else "bce_target_thresh"
        raise ConfigError(f"{name}: {getattr(step, name)} requires loss bce, not {step.loss}")
    if step.distillation != "none" and run.teacher is None:
        raise ConfigError(
            f"teacher: distillation {step.distillation} needs the teacher's checkpoint; give --teacher CKPT"
        )
    for name in ("teacher", "teacher_arch"):
        value = getattr(run, name)
        if value is not None and step.distillation == "none":
            raise ConfigError(f"{name}: {value} is not used with distillation none; set distillation to soft or hard")
