"""The order of operations, for training and for evaluation.

Training, per sample: decode, random resized crop, flip, RandAugment (or colour jitter), all on 8-bit pixels; then per
batch: normalise, erase, mix. Evaluation: decode, resize, centre crop, normalise.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from focal.config.schema import AugmentConfig, Config, DataConfig, ModelConfig
from focal.data.decode import UnreadableImage, decode_rgb, read_file
from focal.data.randomness import BATCH, DROP_PATH, SAMPLE, generator
from focal.data.transforms.color_jitter import color_jitter
from focal.data.transforms.crop import INTERPOLATIONS, draw_crop, draw_interpolation, eval_crop, resized_crop
from focal.data.transforms.drop_path import draw_drop_path
from focal.data.transforms.mixup import apply_mix, draw_mix, mixed_targets
from focal.data.transforms.rand_augment import RandAugment, parse_policy
from focal.data.transforms.random_erasing import draw_erasures, erase
from focal.errors import UserError


class Normalizer:
    """Pixels in 0..255 -> float32 (pixel / 255 - mean) / std per channel."""

    def __init__(self, data: DataConfig) -> None:
        mean, std = (np.array(values, dtype=np.float64)[:, None, None] for values in (data.image_mean, data.image_std))
        self._scale = (1.0 / (255.0 * std)).astype(np.float32)
        self._shift = (-mean / std).astype(np.float32)

    def __call__(self, pixels_HWC: np.ndarray, out_CHW: np.ndarray) -> None:
        """Write the normalised pixels into `out_CHW`."""
        np.multiply(pixels_HWC.transpose(2, 0, 1), self._scale, out=out_CHW)
        out_CHW += self._shift


class TrainPipeline:
    """Everything random about training, as a pure function of (seed, epoch, sample index or batch index)."""

    def __init__(self, augment: AugmentConfig, data: DataConfig, model: ModelConfig, seed: int) -> None:
        self._augment = augment
        self._normalize = Normalizer(data)
        self.image_hw = model.image_hw
        self._num_classes = model.num_classes
        self._drop_path_rates = model.drop_path_rates
        self._seed = seed
        self._rand_augment = None
        if augment.auto_augment != "none":
            policy = parse_policy(augment.auto_augment)
            self._rand_augment = RandAugment(policy, augment.interpolation, data.image_mean)

    def sample_rng(self, epoch: int, index: int) -> np.random.Generator:
        """The generator for everything that is random about one sample, to be used in the order below."""
        return generator(self._seed, epoch, index, SAMPLE)

    def crop(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Random resized crop and flip."""
        augment = self._augment
        box = draw_crop(*image.size, augment.crop_scale, augment.crop_aspect, rng)
        image = resized_crop(image, box, self.image_hw, draw_interpolation(augment.interpolation, rng))
        if rng.random() < augment.hflip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image

    def augment(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """RandAugment, or colour jitter without one."""
        if self._rand_augment is None:
            return color_jitter(image, self._augment.color_jitter, rng)
        return self._rand_augment(image, rng)

    def normalize(self, image: Image.Image, rng: np.random.Generator, out_CHW: np.ndarray) -> None:
        """Normalise into `out_CHW` and erase there."""
        augment = self._augment
        self._normalize(np.asarray(image), out_CHW)
        rectangles = draw_erasures(*self.image_hw, augment.re_prob, augment.re_count, rng)
        erase(out_CHW, rectangles, augment.re_mode, rng)

    def mix(self, images: np.ndarray, labels: np.ndarray, epoch: int, batch_index: int) -> np.ndarray:
        """Mix images (B, 3, H, W) in place; the targets, float32 (B, num_classes), mixed and smoothed."""
        rng = generator(self._seed, epoch, batch_index, BATCH)
        mix = draw_mix(self._augment, len(images), self.image_hw, rng)
        apply_mix(images, mix)
        return mixed_targets(labels, mix.lam, self._num_classes, self._augment.label_smoothing)

    def drop_path(self, batch: int, epoch: int, batch_index: int) -> np.ndarray:
        """Factors of drop path for a batch of `batch` samples, see `draw_drop_path`."""
        return draw_drop_path(self._drop_path_rates, batch, generator(self._seed, epoch, batch_index, DROP_PATH))


class EvalPipeline:
    """Resize by crop_ratio, centre crop, normalise."""

    def __init__(self, augment: AugmentConfig, data: DataConfig, image_hw: tuple[int, int]) -> None:
        # `random` is a training setting; evaluation is then bicubic, as in timm.
        self._resample = INTERPOLATIONS.get(augment.interpolation, Image.Resampling.BICUBIC)
        self._crop_ratio = data.crop_ratio
        self._normalize = Normalizer(data)
        self.image_hw = image_hw

    def __call__(self, image: Image.Image, out_CHW: np.ndarray) -> None:
        cropped = eval_crop(image, self.image_hw, self._crop_ratio, self._resample)
        self._normalize(np.asarray(cropped), out_CHW)


def load_eval_image(path: str, config: Config) -> np.ndarray:
    """One image file as evaluation sees it: float32 (3, H, W).

    Raises:
        UserError: the file cannot be read.
    """
    height, width = config.model.image_hw
    pixels = np.empty((3, height, width), dtype=np.float32)
    try:
        image = decode_rgb(read_file(path))
    except UnreadableImage as error:
        raise UserError(f"image: cannot read {path} ({error})") from None
    EvalPipeline(config.augment, config.data, config.model.image_hw)(image, pixels)
    return pixels
