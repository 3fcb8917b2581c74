"""Label sets hold the right class as often as was asked for, on images they have not seen."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from service.bundle.decision import Decider
from service.bundle.manifest import Decision, Label
from training.conformal import calibrate_sets


@pytest.fixture(scope="module")
def answers():
    """Probabilities [N, 10] and labels of digits that a deliberately poor classifier never saw."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(1).permutation(len(labels))
    images, labels = images[order], labels[order].astype(np.int64)
    net = LogisticRegression(C=0.001, max_iter=200).fit(images[:30], labels[:30])
    return net.predict_proba(images[30:]).astype(np.float32), labels[30:]


def measure(calibrated, probabilities, labels, coverage):
    """Returns how often the set of an image holds its label, through what the service runs."""
    decider = Decider(
        Decision(conformal=(calibrated,)), tuple(Label(name=str(one)) for one in range(10))
    )
    level = decider.find_level(coverage, "none")
    sets = [decider.label_set(row, level).predictions for row in probabilities]
    held = [
        any(one.index == label for one in found) for found, label in zip(sets, labels, strict=True)
    ]
    return np.mean(held), np.mean([len(found) for found in sets])


@pytest.mark.parametrize("coverage", [0.7, 0.8, 0.9, 0.95])
def test_held_out_images_are_covered_as_often_as_asked(answers, coverage):
    probabilities, labels = answers
    rng = np.random.default_rng(0)
    found = []
    for _ in range(5):
        order = rng.permutation(len(labels))
        chosen, held_out = order[:883], order[883:]
        calibrated = calibrate_sets(probabilities[chosen], labels[chosen], "none")
        found.append(measure(calibrated, probabilities[held_out], labels[held_out], coverage)[0])
    # Five splits of 883 and 884 images: the mean varies by about 0.01 at 0.7.
    assert np.mean(found) == pytest.approx(coverage, abs=0.02)


def test_the_best_class_alone_would_not_be_enough(answers):
    """So that the test above can fail: the classifier is right less often than is asked."""
    probabilities, labels = answers
    assert (probabilities.argmax(axis=1) == labels).mean() < 0.7
    chosen, held_out = slice(0, None, 2), slice(1, None, 2)
    calibrated = calibrate_sets(probabilities[chosen], labels[chosen], "none")
    sizes = [
        measure(calibrated, probabilities[held_out], labels[held_out], coverage)[1]
        for coverage in (0.8, 0.9, 0.95)
    ]
    assert 1 <= sizes[0] < sizes[1] < sizes[2] < 10


def test_what_a_level_says_of_itself_was_measured_on_images_that_did_not_choose_it(answers):
    probabilities, labels = answers
    accuracy = (probabilities.argmax(axis=1) == labels).mean()
    for level in calibrate_sets(*answers, "none").levels:
        # The best class is always in the set.
        expected = max(level.coverage, accuracy)
        assert level.measured_coverage == pytest.approx(expected, abs=0.02)


def test_the_quantile_is_the_rank_that_the_proof_needs():
    """19 scores and a coverage of 0.9: the floor(20 x 0.1) = 2nd lowest."""
    scores = np.linspace(0.05, 0.95, 19)
    probabilities = np.stack([scores, 1 - scores], axis=1)
    levels = calibrate_sets(probabilities, np.zeros(19, np.int64), "hflip").levels
    by_coverage = {level.coverage: level.min_score for level in levels}
    assert by_coverage[0.9] == pytest.approx(scores[1])
    # 0.95 would have a rank of 1 with all of them, but none with half.
    assert 0.95 not in by_coverage


def test_few_images_calibrate_nothing():
    assert calibrate_sets(np.array([[0.9, 0.1]]), np.array([0]), "none") is None
