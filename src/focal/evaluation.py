"""Exact top-1, top-5 and loss over all samples and all ranks.

Shapes: B images per batch (padded to a constant), C classes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Callable, Optional, Union

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from focal.data import EvalData
from focal.distributed.collectives import all_reduce_sum
from focal.errors import UserError, printable
from focal.predictions import PredictionCollector

logger = logging.getLogger("focal")


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """Result of an evaluation, over all ranks.

    Attributes:
        top1, top5: per cent.
        loss: mean cross-entropy.
        images: images counted.
        seconds: from the first batch to the last.
        images_per_second: without the first batch, which compiles, unless it is the only one.
    """

    top1: float
    top5: float
    loss: float
    images: int
    seconds: float
    images_per_second: float


class EvalStep(nn.Cell):
    """Sums over a batch, in float32: correct within 1, correct within 5, loss, images; padding counts nothing.

    Args:
        network: images (B, 3, H, W) -> logits (B, C).
        normalize: applied to the images first, e.g. `Normalize` to those of an EvalData; None: they are normalised.
        return_logits: return the logits too, for `PredictionCollector`; they cost nothing unless they are fetched.
    """

    def __init__(self, network: nn.Cell, normalize: Optional[nn.Cell] = None, return_logits: bool = False) -> None:
        super().__init__(auto_prefix=False)
        self.network, self.normalize = network, normalize
        self.return_logits = return_logits

    def construct(self, images: Tensor, labels: Tensor, valid: Tensor) -> Union[Tensor, tuple[Tensor, Tensor]]:
        """Sums (4,) for images (B, 3, H, W), labels int32 (B,), valid float32 (B,) of 0 and 1.

        A label's rank is the number of classes that score higher, so equal scores count in its favour only against
        classes after it: the order a stable sort would give. With fewer than 5 classes every image is within 5.
        """
        if self.normalize is not None:
            images = self.normalize(images)
        logits_BC = self.network(images).astype(ms.float32)
        classes_C = ops.arange(0, logits_BC.shape[1], 1).astype(ms.int32)
        hit_BC = (classes_C.expand_dims(0) == labels.expand_dims(1)).astype(ms.float32)
        score_B1 = (logits_BC * hit_BC).sum(-1).expand_dims(1)
        before_BC = (classes_C.expand_dims(0) < labels.expand_dims(1)).astype(ms.float32)
        ahead_BC = (logits_BC > score_B1).astype(ms.float32) + (logits_BC == score_B1).astype(ms.float32) * before_BC
        rank_B = ahead_BC.sum(-1)
        # nan compares false with everything, which would make it the best: such an image is wrong
        finite_B = ops.isfinite(logits_BC).astype(ms.float32).sum(-1) == logits_BC.shape[1]
        counted_B = finite_B.astype(ms.float32) * valid
        loss_B = -(ops.log_softmax(logits_BC, -1) * hit_BC).sum(-1)
        sums = ops.stack(
            (
                ((rank_B < 1).astype(ms.float32) * counted_B).sum(),
                ((rank_B < 5).astype(ms.float32) * counted_B).sum(),
                ops.select(valid > 0, loss_B, ops.zeros_like(loss_B)).sum(),
                valid.sum(),
            )
        )
        return (sums, logits_BC) if self.return_logits else sums


def evaluate(
    eval_step: EvalStep,
    data: EvalData,
    skip_unreadable: bool = False,
    guard: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    predictions: Optional[PredictionCollector] = None,
) -> EvalResult:
    """Run `eval_step` over all of `data` and add up over ranks.

    Args:
        eval_step: of the network to evaluate.
        data: an EvalData.
        skip_unreadable: leave out images that cannot be read.
        guard: batches are drawn through it, see `focal.distributed.signals`.
        predictions: takes the logits, if `eval_step` returns them.

    Raises:
        UserError: an image could not be read, and `skip_unreadable` is off; or none is left.
    """
    start = first_done = time.monotonic()
    eval_step.set_train(False)
    sums, first_images = np.zeros(4, np.float64), 0.0
    for step, (images, labels, valid) in enumerate(guard(data)):
        outputs = eval_step(Tensor(images), Tensor(labels), Tensor(valid))
        batch_sums, logits = outputs if eval_step.return_logits else (outputs, None)
        sums += batch_sums.asnumpy()
        if predictions is not None and logits is not None:
            predictions.add(step, labels, valid, logits.asnumpy())
        if not first_images:
            first_images, first_done = sums[3], time.monotonic()
    seconds, seconds_after_first = time.monotonic() - start, time.monotonic() - first_done
    fraction_after_first = 1 - first_images / sums[3] if sums[3] else 0.0
    sums = _add_over_ranks(sums)
    _check_unreadable(data, skip_unreadable)
    if sums[3] == 0:
        raise UserError("evaluation: val holds no readable image")
    top1, top5, loss = (float(value) for value in sums[:3] / sums[3])
    count = int(round(sums[3]))
    speed = count * fraction_after_first / seconds_after_first if fraction_after_first else count / max(seconds, 1e-9)
    return EvalResult(100 * top1, 100 * top5, loss, count, seconds, float(speed))


def _add_over_ranks(sums: np.ndarray) -> np.ndarray:
    """Sums over ranks; each float64 travels as two float32 parts, so that nothing is lost."""
    high = sums.astype(np.float32)
    low = (sums - high).astype(np.float32)
    summed = all_reduce_sum(np.stack([high, low]))
    return summed[0].astype(np.float64) + summed[1]


def _check_unreadable(data: EvalData, skip_unreadable: bool) -> None:
    unreadable = list(map(printable, getattr(data, "unreadable", ())))
    count = int(all_reduce_sum(np.array([len(unreadable)], np.float32))[0])
    for path in unreadable:
        logger.warning("evaluation: cannot read %s", path)
    if count and not skip_unreadable:
        named = f" ({', '.join(unreadable[:3])}{', ...' if count > 3 else ''})" if unreadable else ""
        raise UserError(
            f"evaluation: {count} image(s) of val cannot be read{named}; repair or remove them "
            "(scripts/check_dataset.py finds them), or give --skip_unreadable True"
        )


@contextlib.contextmanager
def weights_replaced(parameters: Sequence[Parameter], replacements: Sequence[Parameter]) -> Iterator[None]:
    """Within it, parameters hold the values of their replacements; afterwards their own values again, to the bit.

    Raw and EMA weights are evaluated by one compiled network in this way.
    """
    raw = [parameter.asnumpy().copy() for parameter in parameters]
    try:
        for parameter, replacement in zip(parameters, replacements):
            parameter.set_data(Tensor(replacement.asnumpy()))
        yield
    finally:
        for parameter, value in zip(parameters, raw):
            parameter.set_data(Tensor(value))
