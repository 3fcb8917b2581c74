from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss, precision_recall_fscore_support

from service.bundle.postprocess import top_k
from training.scores import (
    brier_score,
    class_scores,
    confusion_matrix,
    expected_calibration_error,
    macro_score,
    negative_log_likelihood,
    reliability,
    top_k_hits,
    wilson_interval,
)


def test_hits_are_those_of_the_served_top_k_ties_included():
    rng = np.random.default_rng(0)
    # Few distinct values, so that most rows have ties.
    probabilities = rng.integers(0, 4, (200, 7)).astype(np.float32)
    labels = rng.integers(0, 7, 200)
    for k in (1, 3, 5, 9):
        served = [label in top_k(row, k) for row, label in zip(probabilities, labels, strict=True)]
        assert top_k_hits(probabilities, labels, k).tolist() == served


def test_nll_is_the_mean_of_minus_log_p_and_stays_finite_at_zero():
    probabilities = np.array([[0.5, 0.5], [0.25, 0.75]], np.float32)
    labels = np.array([0, 0])
    expected = (math.log(2) + math.log(4)) / 2
    assert negative_log_likelihood(probabilities, labels) == pytest.approx(expected)
    certain = np.array([[0.0, 1.0]], np.float32)
    assert math.isfinite(negative_log_likelihood(certain, np.array([0])))


def test_ece_is_the_gap_between_confidence_and_accuracy():
    overconfident = np.tile(np.array([[0.9, 0.1]], np.float32), (10, 1))
    labels = np.array([0] * 6 + [1] * 4)
    bins = reliability(overconfident, labels)
    assert expected_calibration_error(bins) == pytest.approx(0.3, abs=1e-6)
    assert sum(one.images for one in bins) == 10


def test_ece_is_small_when_confidence_is_honest():
    rng = np.random.default_rng(1)
    sure = rng.uniform(0.5, 1, 50_000)
    labels = (rng.uniform(size=50_000) >= sure).astype(np.int64)
    bins = reliability(np.stack([sure, 1 - sure], axis=1), labels)
    assert expected_calibration_error(bins) < 0.01


def test_a_confidence_of_one_falls_in_the_last_bin():
    bins = reliability(np.array([[1.0, 0.0]]), np.array([0]))
    assert bins[-1].images == 1


def test_wilson_interval_agrees_with_published_values_and_never_leaves_the_unit():
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson_interval(5, 5)[1] == 1.0


def test_confusion_matrix_has_labels_in_rows_and_class_scores_follow_it():
    matrix = confusion_matrix(np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]
    rows = class_scores(matrix, ("a", "b", "c"))
    assert (rows[0].recall, rows[0].precision) == (0.5, 1.0)
    assert (rows[1].recall, rows[1].precision) == (1.0, pytest.approx(2 / 3))
    assert (rows[2].recall, rows[2].precision, rows[2].images) == (None, None, 0)


@pytest.fixture
def answers():
    """Probabilities [400, 5] and labels [400] of four classes; the fifth is only ever predicted."""
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(400, 5))
    labels = rng.integers(0, 4, 400)
    logits[np.arange(400), labels] += 1
    exponents = np.exp(logits)
    return exponents / exponents.sum(axis=1, keepdims=True), labels


def test_every_class_score_is_that_of_scikit_learn(answers):
    probabilities, labels = answers
    predicted = probabilities.argmax(axis=1)
    assert (predicted == 4).any()
    rows = class_scores(confusion_matrix(predicted, labels, 5), tuple("abcde"))
    precision, recall, f1, images = precision_recall_fscore_support(
        labels, predicted, labels=range(4)
    )
    assert [row.precision for row in rows[:4]] == pytest.approx(precision)
    assert [row.recall for row in rows[:4]] == pytest.approx(recall)
    assert [row.f1 for row in rows[:4]] == pytest.approx(f1)
    assert [row.images for row in rows[:4]] == images.tolist()
    expected = precision_recall_fscore_support(labels, predicted, labels=range(4), average="macro")
    macro = macro_score(rows)
    assert (macro.precision, macro.recall, macro.f1) == pytest.approx(expected[:3])


def test_a_class_that_is_never_predicted_counts_as_nothing_found():
    rows = class_scores(confusion_matrix(np.array([0, 0]), np.array([0, 1]), 3), ("a", "b", "c"))
    assert macro_score(rows).precision == pytest.approx(0.25)
    assert rows[2].f1 is None


def test_brier_and_nll_are_those_of_scikit_learn(answers):
    probabilities, labels = answers
    one_hot = np.eye(5)[labels]
    assert brier_score(probabilities, labels) == pytest.approx(
        brier_score_loss(one_hot, probabilities, scale_by_half=False)
    )
    assert negative_log_likelihood(probabilities, labels) == pytest.approx(
        log_loss(labels, probabilities, labels=range(5))
    )
