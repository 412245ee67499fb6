"""The examples run, and what they train learns."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def segmentation():
    """The names of the example, which has not run."""
    return runpy.run_path(str(EXAMPLES / "segmentation.py"))


def test_a_segmentation_network_learns_to_find_shapes(segmentation, tmp_path, capsys):
    """Whatever a network answers for every pixel alike, its mean IoU over four classes is below 1/4."""
    path = tmp_path / "picture.png"
    result = segmentation["main"](["--steps", "60", "--pictures", "32", "--picture", str(path)])
    before = float(capsys.readouterr().out.split("mean IoU before training: ")[1].split()[0])
    assert before < 0.2 and result > 0.25
    with Image.open(path) as picture:
        assert picture.size == (8 * 64, 3 * 64)


def test_the_pictures_depend_on_their_seed_alone_and_hold_every_class(segmentation):
    images, classes = segmentation["draw_batch"](5)
    again, _ = segmentation["draw_picture"](7)
    np.testing.assert_array_equal(images[2], again)
    assert images.shape == (16, 3, 64, 64) and set(np.unique(classes)) == {0, 1, 2, 3}
    assert not np.array_equal(images[0], images[1])


def test_the_mean_iou_is_that_of_its_definition(segmentation):
    """For a network that calls every pixel a circle, and for one that is always right."""
    _, classes = segmentation["draw_batch"](segmentation["HELD_OUT_SEED"])

    def constant(images):
        return segmentation["Tensor"](np.tile(np.eye(4, dtype=np.float32)[1][None, :, None, None], (16, 1, 64, 64)))

    def right(images):
        return segmentation["Tensor"](np.eye(4, dtype=np.float32)[classes].transpose(0, 3, 1, 2))

    assert segmentation["mean_iou"](right, 16) == 1
    np.testing.assert_allclose(segmentation["mean_iou"](constant, 16), (classes == 1).mean() / 4)
