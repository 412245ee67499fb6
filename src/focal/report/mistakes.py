"""What the predictions of an evaluation say about classes and mistakes.

Shapes: n images, C classes.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from focal.predictions import NO_CLASS, Predictions


@dataclasses.dataclass(frozen=True)
class ClassAccuracy:
    """A class of val: how many images it has, and how many of them were recognised."""

    label: int
    images: int
    correct: int

    @property
    def percent(self) -> float:
        return 100 * self.correct / self.images


@dataclasses.dataclass(frozen=True)
class Confusion:
    """How many images of the class `label` were taken for the class `predicted`, of how many."""

    label: int
    predicted: int
    count: int
    images: int

    @property
    def percent(self) -> float:
        """Share of the images of the class."""
        return 100 * self.count / self.images


def class_accuracies(predictions: Predictions) -> list[ClassAccuracy]:
    """Accuracy of each class that has images, by label."""
    classes = len(predictions.class_names)
    images = np.bincount(predictions.labels, minlength=classes)
    correct = np.bincount(predictions.labels[predictions.correct], minlength=classes)
    return [
        ClassAccuracy(label, int(images[label]), int(correct[label])) for label in range(classes) if images[label] > 0
    ]


def confused_pairs(predictions: Predictions, most: int) -> list[Confusion]:
    """The most frequent confusions, by count and then by share of the class, at most `most` of them."""
    classes = len(predictions.class_names)
    images = np.bincount(predictions.labels, minlength=classes)
    predicted = predictions.classes[:, 0].astype(np.int64)
    wrong = ~predictions.correct & (predicted != NO_CLASS)
    pairs, counts = np.unique(predictions.labels[wrong] * np.int64(classes) + predicted[wrong], return_counts=True)
    confusions = [
        Confusion(int(pair // classes), int(pair % classes), int(count), int(images[pair // classes]))
        for pair, count in zip(pairs, counts)
    ]
    confusions.sort(key=lambda pair: (-pair.count, -pair.percent, pair.label, pair.predicted))
    return confusions[:most]


def confusion_matrix(predictions: Predictions) -> np.ndarray:
    """Number of images by label (rows) and likeliest class (columns): int64 (C, C)."""
    classes = len(predictions.class_names)
    predicted = predictions.classes[:, 0].astype(np.int64)
    known = predicted != NO_CLASS
    pairs = predictions.labels[known] * np.int64(classes) + predicted[known]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def worst_mistakes(predictions: Predictions, most: int) -> np.ndarray:
    """Positions of the wrong images whose label was given the least probability (the highest loss), worst first."""
    wrong = np.flatnonzero(~predictions.correct)
    return wrong[np.argsort(predictions.label_probabilities[wrong], kind="stable")][:most]
