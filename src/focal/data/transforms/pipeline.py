"""The order of the transforms.

Training: random resized crop, flip, RandAugment (or colour jitter); then erase, in the batch. Evaluation: resize and
centre crop. All this yields 8-bit images. The device normalises them, and mixes those of training (on_device.py).
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from focal.config.rand_augment_policy import parse_policy
from focal.config.schema import AugmentConfig, DataConfig, ModelConfig
from focal.data.sampler import BATCH, DROP_PATH, SAMPLE, generator
from focal.data.transforms.boxes import Box
from focal.data.transforms.color_jitter import color_jitter
from focal.data.transforms.crop import INTERPOLATIONS, draw_crop, draw_interpolation, eval_crop, resized_crop
from focal.data.transforms.drop_path import draw_drop_path
from focal.data.transforms.erasing import draw_erasures, erase
from focal.data.transforms.mixup import draw_mix, mixed_targets, partner_masks, unmixed
from focal.data.transforms.rand_augment import RandAugment


class TrainTransforms:
    """What happens to training images, as a pure function of (seed, epoch, sample or batch number).

    The stages are methods of their own so that the benchmark can time them. The first three share one generator, from
    `sample_rng`, and must be called in order.
    """

    def __init__(self, augment: AugmentConfig, data: DataConfig, model: ModelConfig, seed: int) -> None:
        self.image_hw = model.image_hw
        self._augment = augment
        self._num_classes = model.num_classes
        self._drop_path_rates = model.drop_path_rates
        self._seed = seed
        self._rand_augment = None
        if augment.auto_augment != "none":
            policy = parse_policy(augment.auto_augment)
            self._rand_augment = RandAugment(policy, augment.interpolation, data.image_mean)

    def sample_rng(self, epoch: int, index: int, copy: int = 0) -> np.random.Generator:
        """The generator for everything random about one copy of a sample; without repeated augmentation it is 0."""
        return generator(self._seed, epoch, index, SAMPLE, copy)

    def crop(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Random resized crop and flip."""
        augment = self._augment
        box = draw_crop(*image.size, augment.crop_scale, augment.crop_aspect, rng)
        image = resized_crop(image, box, self.image_hw, draw_interpolation(augment.interpolation, rng))
        if rng.random() < augment.hflip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image

    def augment(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """RandAugment, or colour jitter if `auto_augment` is none."""
        if self._rand_augment is None:
            return color_jitter(image, self._augment.color_jitter, rng)
        return self._rand_augment(image, rng)

    def erase(self, image: Image.Image, rng: np.random.Generator, out_CHW: np.ndarray) -> list[Box]:
        """Write the pixels into `out_CHW`, uint8, and erase rectangles of it; returns these."""
        augment = self._augment
        write_pixels(image, out_CHW)
        rectangles = draw_erasures(*self.image_hw, augment.re_prob, augment.re_count, rng)
        erase(out_CHW, rectangles, augment.re_mode, rng)
        return rectangles

    def mix(
        self, labels: np.ndarray, epoch: int, batch_number: int
    ) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
        """Mixed and smoothed targets, float32 (B, num_classes), and the masks for mixing the images likewise.

        From epoch `mixup_off_epoch` on, counted from 0, nothing is mixed; the arrays have the same shapes.
        """
        rng = generator(self._seed, epoch, batch_number, BATCH)
        off_epoch = self._augment.mixup_off_epoch
        mixes = not off_epoch or epoch < off_epoch
        mix = draw_mix(self._augment, len(labels), self.image_hw, rng) if mixes else unmixed(len(labels))
        targets = mixed_targets(labels, mix.lam, self._num_classes, self._augment.label_smoothing)
        return targets, partner_masks(mix, self.image_hw)

    def drop_path(self, batch_size: int, epoch: int, batch_number: int) -> np.ndarray:
        """The drop path factors of a batch, float32 (2 * blocks, B); see `draw_drop_path`."""
        rng = generator(self._seed, epoch, batch_number, DROP_PATH)
        return draw_drop_path(self._drop_path_rates, batch_size, rng)


class EvalTransforms:
    """Resize by `crop_ratio`, centre crop."""

    def __init__(self, augment: AugmentConfig, data: DataConfig, model: ModelConfig) -> None:
        # `random` is meant for training; evaluation is then bicubic, as in timm.
        self._resample = INTERPOLATIONS.get(augment.interpolation, Image.Resampling.BICUBIC)
        self._crop_ratio = data.crop_ratio
        self.image_hw = model.image_hw

    def __call__(self, image: Image.Image, out_CHW: np.ndarray) -> None:
        """Write the pixels into `out_CHW`, uint8."""
        write_pixels(eval_crop(image, self.image_hw, self._crop_ratio, self._resample), out_CHW)


def write_pixels(image: Image.Image, out_CHW: np.ndarray) -> None:
    """Write an RGB image into uint8 (3, H, W), channel by channel, in a third of the time of a transpose in NumPy."""
    for plane_HW, channel in zip(out_CHW, "RGB"):
        plane_HW[:] = np.frombuffer(image.tobytes("raw", channel), np.uint8).reshape(plane_HW.shape)
