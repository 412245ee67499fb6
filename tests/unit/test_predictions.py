"""Predictions per image: collected batch by batch, put together over ranks, kept in a file."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from focal import predictions as predictions_module
from focal.data import EvalData, check_data
from focal.errors import UserError
from focal.evaluation import EvalStep, evaluate
from focal.predictions import NO_CLASS, PredictionCollector, Predictions


class MeanColours(nn.Cell):
    """Logits that differ from image to image, without weights."""

    def construct(self, images):
        return 5 * (images.astype(ms.float32) / 64 - 2).mean((2, 3))  # (B, 3)


@pytest.fixture
def val(image_folder, make_config):
    config = make_config(num_classes=3, data_url=str(image_folder), eval_batch_size=4)
    layout = check_data(config, str(image_folder), ("val",))
    return lambda rank=0, world_size=1: EvalData(config, layout, rank, world_size)


def test_each_image_has_its_prediction_and_they_agree_with_the_evaluation(val):
    data = val()
    collector = PredictionCollector(data)
    result = evaluate(EvalStep(MeanColours(), return_logits=True), data, predictions=collector)
    found = collector.gather({"epoch": 1})
    assert found.names[0] == "val/a/000.jpg" and found.names[-1] == "val/c/003.jpg" and len(found.names) == 13
    assert found.labels.tolist() == [0] * 5 + [1] * 4 + [2] * 4 and found.class_names == ("a", "b", "c")
    assert found.classes.shape == (13, 3)  # three classes: all of them
    assert 100 * found.correct.mean() == pytest.approx(result.top1)
    assert -np.log(found.label_probabilities).mean() == pytest.approx(result.loss, rel=1e-4)
    assert found.probabilities.sum(axis=1) == pytest.approx(1, rel=1e-5)
    assert (np.diff(found.probabilities, axis=1) <= 0).all()


def test_two_ranks_together_predict_what_one_does(val, monkeypatch):
    """Each rank's table has only its own rows; the sum of both is the table of one process."""
    alone = PredictionCollector(val())
    evaluate(EvalStep(MeanColours(), return_logits=True), val(), predictions=alone)
    parts = []
    for rank in range(2):
        data = val(rank, 2)
        parts.append(PredictionCollector(data))
        evaluate(EvalStep(MeanColours(), return_logits=True), data, predictions=parts[-1])
    expected = alone.gather({})
    monkeypatch.setattr(predictions_module, "all_reduce_sum", lambda table: parts[0]._table + parts[1]._table)
    together = parts[0].gather({})
    for name in ("samples", "labels", "label_probabilities", "classes", "probabilities"):
        np.testing.assert_allclose(getattr(together, name), getattr(expected, name), rtol=1e-5, err_msg=name)
    assert together.names == expected.names


class ThreeImages:
    """Stands for EvalData: one batch of four places, the last of which is padding."""

    num_images, class_names = 3, tuple("abcdefg")

    def samples(self, step):
        return np.arange(3)

    def sample_name(self, index):
        return f"val/{index}.jpg"


def test_unreadable_images_are_left_out_and_ties_go_to_the_lower_class():
    collector = PredictionCollector(ThreeImages())
    logits = np.zeros((4, 7), np.float32)
    logits[2, 4] = 1
    collector.add(0, np.array([2, 0, 4, 0], np.int32), np.array([1, 0, 1, 0], np.float32), logits)
    found = collector.gather({})
    assert found.samples.tolist() == [0, 2] and found.names == ("val/0.jpg", "val/2.jpg")
    assert found.classes.tolist() == [[0, 1, 2, 3, 4], [4, 0, 1, 2, 3]]
    assert found.correct.tolist() == [False, True]
    assert found.label_probabilities[0] == pytest.approx(1 / 7)


def test_an_image_with_nan_logits_has_no_class():
    collector = PredictionCollector(ThreeImages())
    logits = np.zeros((3, 7), np.float32)
    logits[1, 3] = np.nan
    collector.add(0, np.zeros(3, np.int32), np.ones(3, np.float32), logits)
    found = collector.gather({})
    assert found.correct.tolist() == [True, False, True]
    assert (found.classes[1] == NO_CLASS).all() and (found.probabilities[1] == 0).all()
    assert np.isfinite(found.label_probabilities).all()


def test_a_file_gives_back_what_was_saved_whatever_the_names_are(tmp_path):
    names = ("val/<b>&/\udcff.jpg", "val/数字/b c.png")
    saved = Predictions(
        np.array([0, 7], np.int32), names, np.array([0, 1], np.int32), np.array([0.25, 0.5], np.float32),
        np.array([[1, 0], [1, 0]], np.int32), np.array([[0.75, 0.25], [0.5, 0.5]], np.float32),
        ("<b>&", "数字"), {"epoch": 3, "weights": "EMA"},
    )  # fmt: skip
    saved.save(tmp_path / "of_val")  # the suffix is the user's business
    read = Predictions.load(tmp_path / "of_val")
    assert read.names == names and read.class_names == saved.class_names and read.source == saved.source
    for name in ("samples", "labels", "label_probabilities", "classes", "probabilities"):
        assert (getattr(read, name) == getattr(saved, name)).all() and getattr(read, name).dtype == getattr(
            saved, name
        ).dtype


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "predictions.npz").write_bytes(b"PK\x03\x04 not an archive")
    with pytest.raises(UserError, match="predictions: cannot read .*predictions.npz"):
        Predictions.load(tmp_path / "predictions.npz")
