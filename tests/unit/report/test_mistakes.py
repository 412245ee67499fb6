"""Figures about classes and mistakes, counted by hand."""

from __future__ import annotations

import dataclasses

import numpy as np

from focal.predictions import NO_CLASS
from focal.report.mistakes import class_accuracies, confused_pairs, confusion_matrix, worst_mistakes


def test_accuracy_of_each_class_that_has_images(make_predictions):
    predictions = make_predictions(("a", "b", "c"))
    with_an_empty_class = dataclasses.replace(predictions, class_names=("a", "b", "c", "empty"))
    found = class_accuracies(with_an_empty_class)
    assert [(one.label, one.images, one.correct) for one in found] == [(0, 4, 2), (1, 3, 1), (2, 2, 2)]
    assert found[0].percent == 50


def test_pairs_are_sorted_by_count_and_then_by_share_of_the_class(make_predictions):
    found = [(pair.label, pair.predicted, pair.count, pair.images) for pair in confused_pairs(make_predictions(), 9)]
    assert found == [(1, 0, 2, 3), (0, 1, 1, 4), (0, 2, 1, 4)]
    assert len(confused_pairs(make_predictions(), 2)) == 2


def test_the_matrix_has_true_classes_in_rows(make_predictions):
    assert confusion_matrix(make_predictions()).tolist() == [[2, 1, 1], [2, 1, 0], [0, 0, 2]]


def test_the_worst_mistakes_come_first(make_predictions):
    assert worst_mistakes(make_predictions(), 9).tolist() == [5, 3, 2, 6]
    assert worst_mistakes(make_predictions(), 1).tolist() == [5]


def test_an_image_without_a_class_is_a_mistake_but_in_no_pair(make_predictions):
    predictions = make_predictions()
    classes = predictions.classes.copy()
    classes[8] = NO_CLASS
    probabilities = np.where(np.arange(9) == 8, 0, predictions.label_probabilities)
    broken = dataclasses.replace(predictions, classes=classes, label_probabilities=probabilities)
    assert worst_mistakes(broken, 1).tolist() == [8]
    assert confusion_matrix(broken).sum() == 8 and len(confused_pairs(broken, 9)) == 3
