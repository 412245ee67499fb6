"""Accuracy counted exactly: padding, ties, few classes, several ranks."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, ParameterTuple, Tensor, nn

from focal import evaluation
from focal.data.transforms.normalize import normalize
from focal.data.transforms.on_device import Normalize
from focal.errors import UserError
from focal.evaluation import EvalStep, evaluate, weights_replaced


class Identity(nn.Cell):
    """The 'images' are the logits already, times a weight of 1."""

    def __init__(self):
        super().__init__()
        self.weight = Parameter(Tensor(1.0, ms.float32), name="weight")

    def construct(self, images):
        return images * self.weight


class Batches:
    """Stands for EvalData: constant batches, padded with valid 0."""

    def __init__(self, logits, labels, batch, unreadable=()):
        self.unreadable = list(unreadable)
        self.batches = []
        for start in range(0, len(labels), batch):
            part, of = logits[start : start + batch], labels[start : start + batch]
            pad = batch - len(of)
            self.batches.append(
                (
                    np.concatenate([part, np.full((pad, logits.shape[1]), 3, np.float32)]),
                    np.concatenate([of, np.zeros(pad, np.int32)]),
                    np.concatenate([np.ones(len(of)), np.zeros(pad)]).astype(np.float32),
                )
            )

    def __iter__(self):
        return iter(self.batches)


def reference(logits, labels):
    order = np.argsort(-logits, axis=1, kind="stable")
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    log_probability = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    hits = order == labels[:, None]
    loss = -log_probability[np.arange(len(labels)), labels].mean()
    return 100 * hits[:, :1].sum(1).mean(), 100 * hits[:, :5].sum(1).mean(), loss


@pytest.mark.parametrize("classes, batch", [(10, 4), (10, 13), (3, 5), (1000, 6)])
def test_every_image_counts_once(classes, batch):
    rng = np.random.default_rng(classes)
    logits = rng.integers(-3, 4, (13, classes)).astype(np.float32)  # small integers: many ties
    labels = rng.integers(0, classes, 13).astype(np.int32)
    result = evaluate(EvalStep(Identity()), Batches(logits, labels, batch))
    top1, top5, loss = reference(logits, labels)
    assert result.images == 13
    assert result.top1 == pytest.approx(top1) and result.top5 == pytest.approx(top5)
    assert result.loss == pytest.approx(loss, rel=1e-5)
    if classes < 5:
        assert result.top5 == 100


def test_images_are_normalised_first_where_asked(make_config):
    class FirstPixels(nn.Cell):
        def construct(self, images):
            return images.reshape((images.shape[0], -1))[:, :4]

    config = make_config(image_mean=(0.2, 0.5, 0.5), image_std=(0.1, 0.5, 0.5))
    pixels, labels = np.random.default_rng(0).integers(0, 256, (5, 3, 1, 4), dtype=np.uint8), np.zeros(5, np.int32)
    batch = (Tensor(labels), Tensor(np.ones(5, np.float32)))
    found = EvalStep(FirstPixels(), Normalize(config.data))(Tensor(pixels), *batch).asnumpy()
    expected = EvalStep(FirstPixels())(Tensor(normalize(pixels, config.data)), *batch).asnumpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_an_image_with_nan_logits_is_wrong():
    logits = np.zeros((4, 10), np.float32)
    logits[:, 0] = 1
    logits[2] = np.nan
    result = evaluate(EvalStep(Identity()), Batches(logits, np.zeros(4, np.int32), 4))
    assert (result.top1, result.top5, result.images) == (75.0, 75.0, 4)


def test_sums_of_two_ranks(monkeypatch):
    """The other rank has 10 images more, 5 of them right: large counts must stay exact."""
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((13, 10)).astype(np.float32), np.zeros(13, np.int32)
    alone = evaluate(EvalStep(Identity()), Batches(logits, labels, 4))
    other = np.array([[2**20 + 1, 2**20 + 3, 5.0, 2**21], [0, 0, 0, 0]], np.float32)
    monkeypatch.setattr(evaluation, "all_reduce_sum", lambda sums: sums + other if sums.shape == (2, 4) else sums)
    both = evaluate(EvalStep(Identity()), Batches(logits, labels, 4))
    assert both.images == 2**21 + 13
    assert both.top1 == pytest.approx(100 * (2**20 + 1 + alone.top1 / 100 * 13) / (2**21 + 13), rel=1e-12)


def test_unreadable_images_fail_the_run_unless_allowed(caplog):
    logits, labels = np.ones((3, 4), np.float32), np.zeros(3, np.int32)
    with pytest.raises(UserError, match="1 image.*val/a/broken.jpg"):
        evaluate(EvalStep(Identity()), Batches(logits, labels, 2, ["val/a/broken.jpg"]))
    assert evaluate(EvalStep(Identity()), Batches(logits, labels, 2, ["val/a/broken.jpg"]), True).images == 3


def test_weights_are_replaced_and_given_back():
    network = Identity()
    parameters = ParameterTuple(network.trainable_params())
    averages = [Parameter(Tensor(7.25, ms.float32), name="ema.weight")]
    step = EvalStep(network)
    data = Batches(np.array([[1.0, 0.0]], np.float32), np.zeros(1, np.int32), 1)
    raw = evaluate(step, data).loss
    with weights_replaced(parameters, averages):
        averaged = evaluate(step, data).loss
    assert raw == pytest.approx(np.log1p(np.exp(-1.0)), rel=1e-5)
    assert averaged == pytest.approx(np.log1p(np.exp(-7.25)), abs=5e-6)
    assert evaluate(step, data).loss == raw
    with pytest.raises(RuntimeError), weights_replaced(parameters, averages):
        raise RuntimeError
    assert float(network.weight.asnumpy()) == 1.0
    assert len(step.compile_cache) == 1, "raw and EMA weights share one compiled network"
