"""The transforms are applied in their order, and every setting takes effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
from mindspore import Tensor
from PIL import Image

from focal.config.schema import Config
from focal.data import EvalData, TrainData, check_data, load_eval_image
from focal.data.transforms.on_device import PrepareImages

Load = Callable[..., tuple[np.ndarray, np.ndarray]]  # settings -> images and targets
PLAIN = {"auto_augment": "none", "color_jitter": 0.0, "re_prob": 0.0, "mix_up": 0.0, "cutmix": 0.0, "hflip": 0.0,
         "crop_scale": (1.0, 1.0), "crop_aspect": (1.2, 1.2), "label_smoothing": 0.0}  # fmt: skip


@pytest.fixture
def load(image_folder: Path, make_config: Callable[..., Config], pynative_mode: None) -> Load:
    """Makes the first training batch with the given settings: images as the network sees them, and targets."""

    def first_batch(**changes: Any) -> tuple[np.ndarray, np.ndarray]:
        config = make_config(**changes)
        (images, targets, _, *boxes), _ = TrainData(config, check_data(config, str(image_folder))).load_batch(0, 0)
        assert images.dtype == np.uint8 and images.flags.c_contiguous
        return PrepareImages(config.data)(Tensor(images), *map(Tensor, boxes)).asnumpy(), targets

    return first_batch


def _normalized(pixels_HWC: np.ndarray) -> np.ndarray:
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return ((pixels_HWC / 255 - mean) / std).transpose(2, 0, 1)


def test_without_augmentation_a_batch_is_resized_and_normalised_images(
    image_folder: Path, make_config: Callable[..., Config], load: Load
) -> None:
    config = make_config(**PLAIN)
    layout = check_data(config, str(image_folder))
    data = TrainData(config, layout)
    images, targets = load(**PLAIN)
    for image, target, index in zip(images, targets, data.sampler.indices(0, 0).tolist()):
        # The images are 48 x 40, of aspect 1.2: the crop is the whole image.
        whole = Image.open(layout.train.name(index)).resize((32, 32), Image.Resampling.BICUBIC)
        np.testing.assert_allclose(image, _normalized(np.asarray(whole)), atol=1e-5)
        assert target.tolist() == np.eye(3)[layout.train.labels[index]].tolist()


@pytest.mark.parametrize(
    "change",
    [{"interpolation": "bilinear"}, {"crop_scale": (0.3, 0.5)}, {"crop_aspect": (0.7, 0.8)}, {"hflip": 1.0},
     {"auto_augment": "rand-m9-n4-p1-inc1"}, {"color_jitter": 0.4}, {"re_prob": 1.0}, {"mix_up": 0.8},
     {"cutmix": 1.0}, {"image_mean": (0.5, 0.5, 0.5)}, {"image_std": (0.5, 0.5, 0.5)}, {"seed": 1}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_every_setting_changes_pixels(change: dict[str, Any], load: Load) -> None:
    assert not np.allclose(load(**PLAIN)[0], load(**{**PLAIN, **change})[0], atol=1e-3)


@pytest.mark.parametrize(
    ("base", "change"),
    [({"re_prob": 1.0}, {"re_mode": "const"}), ({"re_prob": 1.0}, {"re_count": 5}),
     ({"mix_up": 0.8}, {"mixup_prob": 0.0}), ({"mix_up": 0.8, "cutmix": 1.0, "switch_prob": 0.0}, {"switch_prob": 1.0}),
     ({"mix_up": 0.8}, {"mixup_mode": "elem"}), ({"mix_up": 0.8}, {"mixup_mode": "pair"}),
     ({"mix_up": 0.8}, {"mix_up": 0.1})],
)  # fmt: skip
def test_every_dependent_setting_changes_pixels_if_its_transform_is_on(
    base: dict[str, Any], change: dict[str, Any], load: Load
) -> None:
    base = {**PLAIN, **base}
    assert not np.allclose(load(**base)[0], load(**{**base, **change})[0], atol=1e-3)


def test_color_jitter_is_ignored_with_auto_augment(load: Load) -> None:
    assert (load(color_jitter=0.0)[0] == load(color_jitter=0.9)[0]).all()


def test_batch_has_the_configured_shape_and_label_smoothing(load: Load) -> None:
    images, targets = load(batch_size=6, image_size=(24, 40), label_smoothing=0.3)
    assert images.shape == (6, 3, 24, 40) and images.dtype == np.float32
    np.testing.assert_allclose(targets.min(axis=1), 0.1, atol=1e-6)
    np.testing.assert_allclose(targets.sum(axis=1), 1.0, atol=1e-6)


def test_erasing_comes_before_mixing(load: Load) -> None:
    """Mixup adds the partner to the zeros of an erased rectangle; if erased after mixing, they would stay zero."""
    erased = load(**{**PLAIN, "re_prob": 1.0, "re_mode": "const"})[0]
    mixed = load(**{**PLAIN, "re_prob": 1.0, "re_mode": "const", "mix_up": 0.8})[0]
    holes = (erased == 0).all(axis=1) & ~(erased[::-1] == 0).all(axis=1)
    assert holes.any()
    assert (np.abs(mixed.transpose(0, 2, 3, 1)[holes]).max(axis=1) > 0).mean() > 0.95


def test_evaluation_image_is_the_same_alone_and_in_a_batch(
    image_folder: Path, make_config: Callable[..., Config]
) -> None:
    config = make_config(crop_ratio=0.8)
    layout = check_data(config, str(image_folder))
    images, labels, valid, _ = EvalData(config, layout).load_batch(1)
    assert labels.tolist() == [0, 1, 1, 1] and valid.tolist() == [1, 1, 1, 1]
    for place in range(4):
        alone = load_eval_image(layout.val.name(4 + place), config)
        assert alone.dtype == np.float32 and images.dtype == np.uint8
        np.testing.assert_allclose(alone, _normalized(images[place].transpose(1, 2, 0)), atol=1e-5)
    # 48 x 40 -> shorter side int(32 / 0.8) = 40: unchanged, then the centre.
    pixels = np.asarray(Image.open(layout.val.name(4)))[4:36, 8:40]
    assert (images[0].transpose(1, 2, 0) == pixels).all()


@pytest.mark.parametrize("change", [{"crop_ratio": 0.6}, {"interpolation": "bilinear"}])
def test_every_evaluation_setting_changes_pixels(
    image_folder: Path, make_config: Callable[..., Config], change: dict[str, Any]
) -> None:
    path = str(image_folder / "val" / "a" / "000.jpg")
    base = {"crop_ratio": 0.9}
    assert not np.allclose(
        load_eval_image(path, make_config(**base)), load_eval_image(path, make_config(**{**base, **change}))
    )
