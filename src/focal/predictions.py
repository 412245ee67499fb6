"""What a network predicted for each image of val: collected during an evaluation and kept in a small file.

Shapes: N images of val, n of them predicted (all that are readable), B images per batch, C classes, K = min(5, C)
likeliest classes.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from focal.distributed.collectives import all_reduce_sum
from focal.errors import UserError
from focal.files import atomic_write

if TYPE_CHECKING:
    from focal.data import EvalData

KEPT_CLASSES = 5
NO_CLASS = -1  # in place of the classes of an image whose logits are not finite; its probabilities are 0


@dataclass(frozen=True)
class Predictions:
    """The predictions of one evaluation, in the order of val, over all ranks.

    Attributes:
        samples: number of each image in val, int32 (n,).
        names: path of each image, relative to the data folder.
        labels: int32 (n,).
        label_probabilities: probability that the network gave to the label, float32 (n,).
        classes: the likeliest classes, best first, int32 (n, K).
        probabilities: their probabilities, float32 (n, K).
        class_names: by label.
        source: which weights made them, for readers: `{"epoch": 12, "weights": "EMA", ...}`.
    """

    samples: np.ndarray
    names: tuple[str, ...]
    labels: np.ndarray
    label_probabilities: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray
    class_names: tuple[str, ...]
    source: Mapping[str, Any]

    @property
    def correct(self) -> np.ndarray:
        """Whether the likeliest class is the label: bool (n,)."""
        return self.classes[:, 0] == self.labels

    def save(self, path: Path) -> None:
        """Write an NPZ file, atomically: `names` as bytes, `class_names` and `source` as JSON, the rest as it is.

        Raises:
            OSError: it could not be written.
        """
        arrays = {
            "samples": self.samples,
            "names": np.array([os.fsencode(name) for name in self.names], dtype=bytes),
            "labels": self.labels,
            "label_probabilities": self.label_probabilities,
            "classes": self.classes,
            "probabilities": self.probabilities,
            "class_names": np.array(json.dumps(self.class_names)),
            "source": np.array(json.dumps(dict(self.source))),
        }
        contents = io.BytesIO()  # a zip file that is written to a full disk complains once more when it is collected
        np.savez_compressed(contents, **arrays)
        with atomic_write(path) as temporary:
            temporary.write_bytes(contents.getbuffer())

    @classmethod
    def load(cls, path: Path) -> Predictions:
        """Read a file that `save` has written.

        Raises:
            UserError: it cannot be read, or is another kind of file.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in ("samples", "labels", "label_probabilities")}
                arrays.update({name: file[name] for name in ("classes", "probabilities")})
                names = tuple(map(os.fsdecode, file["names"].tolist()))
                class_names, source = (json.loads(file[name].item()) for name in ("class_names", "source"))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(
                f"predictions: cannot read {path} ({error}); eval.py --predictions {path.name} writes it again"
            ) from None
        return cls(names=names, class_names=tuple(class_names), source=source, **arrays)


class PredictionCollector:
    """Takes the logits of one evaluation, batch by batch, on each rank; then puts those of all ranks together.

    Args:
        data: this rank's part of val.
    """

    def __init__(self, data: EvalData) -> None:
        self._data = data
        kept = min(KEPT_CLASSES, len(data.class_names))
        # present, label, its probability, K classes, K probabilities: float32 is what travels between ranks
        self._table = np.zeros((data.num_images, 3 + 2 * kept), np.float32)

    def add(self, step: int, labels: np.ndarray, valid: np.ndarray, logits: np.ndarray) -> None:
        """Take the batch number `step` of this rank.

        Args:
            labels, valid: (B,), as `EvalData` yields them; rows that are not valid are left out.
            logits: float32 (B, C).
        """
        samples = self._data.samples(step)
        chosen = valid[: len(samples)] > 0
        labels, logits = labels[: len(samples)][chosen], logits[: len(samples)][chosen].astype(np.float64)
        finite = np.isfinite(logits).all(axis=1, keepdims=True)
        logits = np.where(finite, logits, 0.0)
        kept = (self._table.shape[1] - 3) // 2
        best = np.argsort(-logits, axis=1, kind="stable")[:, :kept]  # equal scores in the order of EvalStep
        probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities *= finite / probabilities.sum(axis=1, keepdims=True)
        self._table[samples[chosen]] = np.concatenate(
            (
                np.ones((len(labels), 1)),
                labels[:, None],
                np.take_along_axis(probabilities, labels[:, None].astype(np.int64), axis=1),
                np.where(finite, best, NO_CLASS),
                np.take_along_axis(probabilities, best, axis=1),
            ),
            axis=1,
        )

    def gather(self, source: Mapping[str, Any]) -> Predictions:
        """The predictions of all ranks. Every rank must call it.

        Args:
            source: see `Predictions`.
        """
        table = all_reduce_sum(self._table)
        samples = np.flatnonzero(table[:, 0]).astype(np.int32)
        table = table[samples]
        kept = (table.shape[1] - 3) // 2
        return Predictions(
            samples=samples,
            names=tuple(map(self._data.sample_name, samples.tolist())),
            labels=table[:, 1].astype(np.int32),
            label_probabilities=table[:, 2],
            classes=table[:, 3 : 3 + kept].astype(np.int32),
            probabilities=table[:, 3 + kept :],
            class_names=tuple(self._data.class_names),
            source=source,
        )
