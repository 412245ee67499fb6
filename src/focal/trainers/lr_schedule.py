"""Learning-rate schedules: pure functions of the settings, one float64 value per step (update of the weights).

Shapes: U steps in the whole training (epochs x steps per epoch). Positions are fractional epochs: step u is at epoch
u / steps_per_epoch. Every schedule shares three rules: linear warm-up from `warmup_lr` to `base_lr`
over `warmup_length` epochs, the last `cool_length` epochs at `cool_lr`, and never under `min_lr`. The shape between
them, with e the epochs since the end of warm-up and E = epochs - warmup_length:

    cosine_lr     base_lr * 0.5 * (1 + cos(pi * e / E))                   as the report of Focal-fast-S
    constant_lr   base_lr
    multistep_lr  base_lr * lr_gamma ** floor(e / lr_adjust)
    exp_lr        base_lr * lr_gamma ** e
    polynomial    min_lr + (base_lr - min_lr) * (1 - e / E) ** lr_power
"""

from __future__ import annotations

from typing import Callable

import numpy as np

from focal.config.schema import OptimConfig

REFERENCE_BATCH = 512  # images per step that the rates of a configuration are meant for (the authors' convention)


def learning_rate_factor(batch_size: int, world_size: int, accumulation_step: int) -> float:
    """Factor on every rate of the schedule: images per step over 512 (linear scaling, as the authors do)."""
    return batch_size * world_size * accumulation_step / REFERENCE_BATCH


def learning_rates(optim: OptimConfig, steps_per_epoch: int, factor: float = 1.0) -> np.ndarray:
    """Learning rate of each step.

    Args:
        optim: the schedule and its settings, for a total batch of 512.
        steps_per_epoch: steps in an epoch.
        factor: see `learning_rate_factor`.

    Returns:
        float64 (epochs * steps_per_epoch,).

    Raises:
        ValueError: steps_per_epoch is below 1.
    """
    if steps_per_epoch < 1:
        raise ValueError(f"steps_per_epoch: {steps_per_epoch} must be at least 1")
    epoch_U = np.arange(optim.epochs * steps_per_epoch, dtype=np.float64) / steps_per_epoch
    since_warmup_U = np.maximum(epoch_U - optim.warmup_length, 0.0)
    rates_U = _SHAPES[optim.lr_scheduler](optim, since_warmup_U)
    if optim.warmup_length:
        fraction_U = epoch_U / optim.warmup_length
        warmup_U = optim.warmup_lr + (optim.base_lr - optim.warmup_lr) * fraction_U
        rates_U = np.where(epoch_U < optim.warmup_length, warmup_U, rates_U)
    if optim.cool_length:
        rates_U = np.where(epoch_U >= optim.epochs - optim.cool_length, optim.cool_lr, rates_U)
    return np.maximum(rates_U, optim.min_lr) * factor


def _cosine(optim: OptimConfig, since_warmup_U: np.ndarray) -> np.ndarray:
    return optim.base_lr * 0.5 * (1 + np.cos(np.pi * since_warmup_U / _decay_epochs(optim)))


def _constant(optim: OptimConfig, since_warmup_U: np.ndarray) -> np.ndarray:
    return np.full_like(since_warmup_U, optim.base_lr)


def _multistep(optim: OptimConfig, since_warmup_U: np.ndarray) -> np.ndarray:
    # The small shift keeps a step that falls exactly on a drop from being rounded down.
    return optim.base_lr * optim.lr_gamma ** np.floor(since_warmup_U / optim.lr_adjust + 1e-9)


def _exponential(optim: OptimConfig, since_warmup_U: np.ndarray) -> np.ndarray:
    return optim.base_lr * optim.lr_gamma**since_warmup_U


def _polynomial(optim: OptimConfig, since_warmup_U: np.ndarray) -> np.ndarray:
    remaining_U = 1 - since_warmup_U / _decay_epochs(optim)
    return optim.min_lr + (optim.base_lr - optim.min_lr) * remaining_U**optim.lr_power


def _decay_epochs(optim: OptimConfig) -> int:
    """E of the formulas; 1 where warm-up takes the whole training, so that no step reads the decay."""
    return max(optim.epochs - optim.warmup_length, 1)


_SHAPES: dict[str, Callable[[OptimConfig, np.ndarray], np.ndarray]] = {
    "cosine_lr": _cosine,
    "constant_lr": _constant,
    "multistep_lr": _multistep,
    "exp_lr": _exponential,
    "polynomial": _polynomial,
}
