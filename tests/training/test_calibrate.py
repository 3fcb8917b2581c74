from __future__ import annotations

import numpy as np
import pytest

from training.calibrate import calibrate, choose_threshold, fit_temperature, softmax
from training.scores import negative_log_likelihood


@pytest.fixture
def overconfident():
    """Logits [N, C] that are 2.5 times too large, with labels [N] drawn from the honest ones."""
    rng = np.random.default_rng(3)
    honest = rng.normal(0, 2, (4000, 8))
    drawn = [rng.choice(8, p=row) for row in softmax(honest)]
    return (honest * 2.5).astype(np.float32), np.array(drawn, np.int64)


def test_fitting_finds_the_temperature_that_made_the_labels(overconfident):
    assert fit_temperature(*overconfident) == pytest.approx(2.5, rel=0.05)


def test_the_fitted_temperature_is_the_least_of_the_likelihood(overconfident):
    logits, labels = overconfident
    best = fit_temperature(logits, labels)
    losses = [
        negative_log_likelihood(softmax(logits, best * factor), labels)
        for factor in (0.99, 1.0, 1.01)
    ]
    assert min(losses) == losses[1]


def test_calibration_lowers_the_error_and_keeps_the_answers(overconfident):
    logits, labels = overconfident
    found = calibrate(logits, labels)
    assert found.ece_after < 0.02 < 0.1 < found.ece_before
    after = softmax(logits, found.temperature)
    assert (after.argmax(axis=1) == softmax(logits).argmax(axis=1)).all()


def test_a_perfectly_separated_model_gets_a_finite_temperature():
    logits = np.eye(3, dtype=np.float32) * 30
    assert 0.04 < fit_temperature(logits, np.arange(3)) < 21


def confidences(*values):
    return np.array([[value, 1 - value] for value in values])


def test_threshold_keeps_most_images_at_the_target_accuracy():
    probabilities = confidences(0.95, 0.9, 0.8, 0.7, 0.6)
    labels = np.array([0, 0, 1, 0, 1])  # right, right, wrong, right, wrong
    decision = choose_threshold(probabilities, labels, target_accuracy=0.75)
    assert decision.abstain_below == pytest.approx(0.65)
    assert decision.reference.coverage == pytest.approx(0.8)
    assert decision.reference.accuracy == pytest.approx(0.75)


def test_threshold_halves_the_error_by_default():
    probabilities = confidences(0.95, 0.9, 0.8, 0.7, 0.6)
    labels = np.array([0, 0, 0, 0, 1])  # 80 % right, so the target is 90 %
    decision = choose_threshold(probabilities, labels)
    assert decision.reference.accuracy == 1.0
    assert decision.reference.coverage == pytest.approx(0.8)


def test_equal_confidences_are_kept_or_left_together():
    probabilities = confidences(0.9, 0.8, 0.8, 0.8)
    labels = np.array([0, 0, 1, 1])
    decision = choose_threshold(probabilities, labels, target_accuracy=0.9)
    assert decision.abstain_below == pytest.approx(0.85)
    assert decision.reference.coverage == 0.25


@pytest.mark.parametrize(("labels", "target"), [([0, 0, 0], 0.9), ([1, 1, 1], 0.9)])
def test_there_is_no_threshold_when_all_or_none_reaches_the_target(labels, target):
    decision = choose_threshold(confidences(0.9, 0.8, 0.7), np.array(labels), target)
    assert decision.abstain_below is None
    assert decision.reference is None
