"""What may be acted on: thresholds, groups that are sure instead, sets of labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from service.bundle.decision import Decider
from service.bundle.manifest import Conformal, ConformalLevel, Decision, Group, Label
from service.errors import ErrorCode, RequestError

GROUPS = (Group(name="thing"), Group(name="animal", parent=0), Group(name="vehicle", parent=0))
LABELS = (
    Label(name="cat", parent=1),
    Label(name="dog", parent=1),
    Label(name="car", parent=2),
    Label(name="fog"),
)


def level(coverage: float, min_score: float) -> ConformalLevel:
    return ConformalLevel(
        coverage=coverage, min_score=min_score, measured_coverage=coverage, mean_labels=1
    )


def decide(probabilities, **decision):
    row = np.array(probabilities, np.float32)
    return Decider(Decision(**decision), LABELS, GROUPS).decide(row, int(row.argmax()))


def test_without_a_threshold_everything_is_answered():
    verdict = decide([0.3, 0.3, 0.2, 0.2])
    assert (verdict.abstained, verdict.threshold, verdict.group) == (False, None, None)


def test_a_score_at_the_threshold_is_answered_and_one_below_is_not():
    assert not decide([0.75, 0.25, 0, 0], abstain_below=0.75).abstained
    verdict = decide([0.625, 0.125, 0.25, 0], abstain_below=0.75)
    assert (verdict.abstained, verdict.threshold) == (True, 0.75)


def test_a_threshold_is_compared_as_exactly_as_it_was_chosen():
    """0.9 lies between two float32; the one above it is answered, the one below is not."""
    above = np.float32(0.9)
    above = above if float(above) > 0.9 else np.nextafter(above, np.float32(1))
    below = np.nextafter(above, np.float32(0))
    assert not decide([above, 0, 0, 0], abstain_below=0.9).abstained
    assert decide([below, 0, 0, 0], abstain_below=0.9).abstained


def test_a_threshold_of_a_class_holds_for_that_class_alone():
    thresholds = {"abstain_below": 0.5, "abstain_below_by_class": (0.9, None, 0.0, None)}
    assert decide([0.8, 0.2, 0, 0], **thresholds).threshold == 0.9
    assert decide([0.8, 0.2, 0, 0], **thresholds).abstained
    assert not decide([0.2, 0.8, 0, 0], **thresholds).abstained
    assert not decide([0.2, 0.2, 0.3, 0.3], **thresholds).abstained


def test_the_narrowest_group_that_is_sure_is_named_when_no_class_is():
    verdict = decide([0.5, 0.375, 0.125, 0], abstain_below=0.75)
    assert (verdict.group.label, verdict.group.score) == ("animal", 0.875)
    verdict = decide([0.5, 0, 0.375, 0.125], abstain_below=0.75)
    assert (verdict.group.label, verdict.group.score) == ("thing", 0.875)
    assert decide([0.375, 0, 0.25, 0.375], abstain_below=0.75).group is None


def test_of_two_groups_as_deep_the_more_probable_is_named():
    verdict = decide([0.25, 0.25, 0.375, 0.125], abstain_below=0.376)
    assert verdict.group.label == "animal"


def test_an_answer_that_is_given_names_no_group():
    assert decide([0.875, 0.125, 0, 0], abstain_below=0.75).group is None


def test_the_score_of_a_group_is_a_probability_even_when_float32_rounds_up():
    row = np.full(4, np.nextafter(np.float32(0.25), np.float32(1)))
    groups = (Group(name="thing"),)
    labels = tuple(Label(name=str(index), parent=0) for index in range(4))
    verdict = Decider(Decision(abstain_below=0.9), labels, groups).decide(row, 0)
    assert verdict.group.score == 1.0


def sets(*levels):
    calibrated = Conformal(tta="none", images=100, levels=levels)
    return Decider(Decision(conformal=(calibrated,)), LABELS, GROUPS)


def test_a_label_set_holds_every_class_that_reaches_the_score():
    decider = sets(level(0.9, 0.25), level(0.99, 0.125))
    row = np.array([0.125, 0.25, 0.5, 0.125], np.float32)
    found = decider.label_set(row, decider.find_level(0.9, "none"))
    assert [one.label for one in found.predictions] == ["car", "dog"]
    assert len(decider.label_set(row, decider.find_level(0.99, "none")).predictions) == 4


@given(
    scores=npst.arrays(np.float32, 4, elements=st.floats(0, 1, width=32)),
    least=st.floats(0, 1),
)
def test_a_label_set_is_never_empty_and_never_has_a_class_under_the_score(scores, least):
    decider = sets(level(0.9, least))
    found = decider.label_set(scores, decider.find_level(0.9, "none"))
    expected = max(1, sum(float(one) >= least for one in scores))
    assert len(found.predictions) == expected
    assert found.predictions[0].score == scores.max()


@pytest.mark.parametrize(("asked", "given"), [(0.5, 0.8), (0.8, 0.8), (0.81, 0.9), (0.9, 0.9)])
def test_the_next_calibrated_level_answers_for_a_coverage(asked, given):
    assert sets(level(0.8, 0.5), level(0.9, 0.2)).find_level(asked, "none").coverage == given


@pytest.mark.parametrize(
    ("coverage", "tta", "said"),
    [
        (0.95, "none", "go up to a coverage of 0.9"),
        (0.9, "hflip", "for the policies: none"),
        (0.0, "none", "between 0 and 1"),
        (1.0, "none", "between 0 and 1"),
        (float("nan"), "none", "between 0 and 1"),
    ],
)
def test_what_was_not_calibrated_is_refused(coverage, tta, said):
    with pytest.raises(RequestError, match=said) as refused:
        sets(level(0.9, 0.2)).find_level(coverage, tta)
    assert refused.value.code is ErrorCode.INVALID_ARGUMENT
