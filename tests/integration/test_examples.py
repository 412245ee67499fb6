"""The examples run, and what they train learns."""

import re

import numpy as np
import pytest
from mindspore import Tensor
from PIL import Image

import focal
from examples import segmentation


@pytest.mark.slow
def test_a_segmentation_network_learns_to_find_shapes(tmp_path, capsys, monkeypatch):
    """After a third of the example's steps it beats the best answer that is the same for every pixel: background.

    Of each stage, there is one block here.
    """
    load_config, path = focal.load_config, tmp_path / "picture.png"
    monkeypatch.setattr(focal, "load_config", lambda settings: load_config(settings, {"depths": [1, 1, 1]}))
    result = segmentation.main(["--steps", "130", "--pictures", "32", "--picture", str(path)])
    printed = capsys.readouterr().out
    losses = [float(text) for text in re.findall(r"loss (\S+)", printed)]  # means of steps 1 to 50 and 51 to 100
    assert len(losses) == 2 and losses[1] < 0.85 * losses[0]
    _, classes = segmentation.draw_batch(segmentation.HELD_OUT_SEED, 32)
    assert float(re.search(r"before training: (\S+)", printed).group(1)) < (classes == 0).mean() / 4 < result - 0.01
    with Image.open(path) as picture:
        assert picture.size == (8 * 64, 3 * 64)


@pytest.mark.parametrize("pictures", ("20", "0", "-16"))
def test_pictures_that_do_not_fill_batches_are_refused(pictures, capsys):
    with pytest.raises(SystemExit):
        segmentation.main(["--pictures", pictures])
    assert f"--pictures: {pictures} is not a multiple of 16" in capsys.readouterr().err


def test_the_pictures_depend_on_their_seed_alone_and_hold_every_class():
    images, classes = segmentation.draw_batch(5)
    again, _ = segmentation.draw_picture(7)
    np.testing.assert_array_equal(images[2], again)
    assert images.shape == (16, 3, 64, 64) and set(np.unique(classes)) == {0, 1, 2, 3}
    assert not np.array_equal(images[0], images[1])


def test_the_mean_iou_is_that_of_its_definition():
    """For a network that calls every pixel a circle, and for one that is always right."""
    _, classes = segmentation.draw_batch(segmentation.HELD_OUT_SEED)

    def constant(images):
        return Tensor(np.tile(np.eye(4, dtype=np.float32)[1][None, :, None, None], (16, 1, 64, 64)))

    def right(images):
        return Tensor(np.eye(4, dtype=np.float32)[classes].transpose(0, 3, 1, 2))

    assert segmentation.mean_iou(right, 16) == 1
    np.testing.assert_allclose(segmentation.mean_iou(constant, 16), (classes == 1).mean() / 4)
