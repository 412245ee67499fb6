"""What the device makes of a batch is what NumPy makes of the same random numbers in float32 on the host."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from focal.config.schema import Config
from focal.data import TrainBatch, TrainData, blank_batch, check_data
from focal.data.decode import decode_rgb, read_file
from focal.data.sampler import BATCH, generator
from focal.data.transforms.boxes import box_masks
from focal.data.transforms.erasing import CODES_PER_UNIT, draw_erasures
from focal.data.transforms.mixup import draw_mix
from focal.data.transforms.on_device import Normalize, PrepareImages
from focal.data.transforms.pipeline import TrainTransforms
from tests.unit.data.transforms import host_path

MakeConfig = Callable[..., Config]
EPOCH, STEP = 1, 2


def prepared(batch: TrainBatch, config: Config) -> np.ndarray:
    images, _, _, *boxes = map(Tensor, batch)
    return PrepareImages(config.data)(images, *boxes).asnumpy()


def on_the_host(data: TrainData, config: Config, paths: list[str]) -> np.ndarray:
    """The same batch, normalised before it is erased, and with noise that is not rounded."""
    transforms = TrainTransforms(config.augment, config.data, config.model, config.run.seed)
    images = []
    for path, index in zip(paths, data.sampler.indices(EPOCH, STEP).tolist()):
        rng = transforms.sample_rng(EPOCH, index)
        image = transforms.augment(transforms.crop(decode_rgb(read_file(path)), rng), rng)
        images.append(host_path.normalize(np.asarray(image).transpose(2, 0, 1), config.data))
        boxes = draw_erasures(*config.model.image_hw, config.augment.re_prob, config.augment.re_count, rng)
        host_path.erase(images[-1], boxes, config.augment.re_mode, rng)
    rng = generator(config.run.seed, EPOCH, data.sampler.batch_number(STEP), BATCH)
    return host_path.mix_images(np.stack(images), draw_mix(config.augment, len(images), config.model.image_hw, rng))


@pytest.mark.parametrize("mixup_mode", ("batch", "pair", "elem"))
@pytest.mark.parametrize("re_mode", ("const", "rand", "pixel"))
@pytest.mark.parametrize("seed", (0, 1))  # whose batches differ in what is mixed, and how
def test_images_are_those_of_the_host(
    image_folder: Path, make_config: MakeConfig, mixup_mode: str, re_mode: str, seed: int
) -> None:
    config = make_config(
        mixup_mode=mixup_mode, mixup_prob=0.8, re_mode=re_mode, re_prob=0.8, re_count=3, image_size=(32, 48), seed=seed
    )
    layout = check_data(config, str(image_folder))
    data = TrainData(config, layout)
    batch, _ = data.load_batch(EPOCH, STEP)
    assert batch.erased_rows.any() and batch.partner_rows.any()  # something is erased and mixed, or this shows nothing
    paths = [layout.train.name(index) for index in data.sampler.indices(EPOCH, STEP).tolist()]
    expected = on_the_host(data, config, paths)
    # Noise is rounded to codes; mixing, a mean with weights, makes no error larger.
    rounding = 0.0 if re_mode == "const" else 0.5 / CODES_PER_UNIT
    found = prepared(batch, config)
    assert found.dtype == np.float32 and found.shape == (4, 3, 32, 48)
    np.testing.assert_allclose(found, expected, rtol=0, atol=rounding + 3e-6)


def test_evaluation_is_normalised_as_training_is(make_config: MakeConfig) -> None:
    config = make_config(image_mean=(0.1, 0.5, 0.9), image_std=(0.2, 0.3, 0.4))
    blank = blank_batch(config)
    pixels = np.random.default_rng(0).integers(0, 256, blank.images.shape, dtype=np.uint8)
    found = Normalize(config.data)(Tensor(pixels)).asnumpy()
    np.testing.assert_allclose(found, host_path.normalize(pixels, config.data), rtol=0, atol=3e-6)
    assert (prepared(blank._replace(images=pixels), config) == found).all()  # nothing is erased, nothing mixed


def test_the_product_of_the_masks_counts_the_boxes_of_a_pixel() -> None:
    boxes = [[(0, 1, 2, 4), (1, 2, 3, 6)], [], [(4, 5, 5, 6), (2, 2, 2, 4)]]  # two overlap; the last is empty
    rows, columns = box_masks(boxes, 3, (5, 6))
    assert rows.shape == (3, 1, 5, 3) and columns.shape == (3, 1, 3, 6) and rows.dtype == columns.dtype == np.float32
    expected = np.zeros((3, 1, 5, 6))
    for image, boxes_of_image in enumerate(boxes):
        for top, left, bottom, right in boxes_of_image:
            expected[image, 0, top:bottom, left:right] += 1
    assert (rows @ columns == expected).all()


def test_a_batch_is_little_more_than_the_bytes_of_its_pixels(make_config: MakeConfig) -> None:
    batch = blank_batch(make_config(image_size=224))
    assert batch.images.dtype == np.uint8 and batch.images[0].nbytes == 3 * 224 * 224
    masks = sum(array[0].nbytes for array in batch[3:])
    assert masks == 4 * (224 + 224) * 2
    assert all(array.dtype == np.float32 for array in batch[1:])
    assert ms.Tensor(batch.images).dtype == ms.uint8
