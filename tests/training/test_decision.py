"""The decision of a manifest: thresholds by class, groups, and what they say of themselves."""

from __future__ import annotations

import json

import numpy as np
import pytest

from service.bundle.manifest import Group, Label
from training.decision import choose_decision
from training.errors import TrainingError
from training.labels import read_hierarchy

LABELS = (Label(name="cat"), Label(name="dog"), Label(name="car"))


@pytest.fixture(scope="module")
def answers():
    """Cats and dogs are taken for one another below 0.8; a car is always a car."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 900)
    rows = np.full((900, 3), 0.02)
    best = rng.uniform(0.5, 0.97, 900)
    predicted = truth.copy()
    confused = (truth < 2) & (best < 0.8) & (rng.random(900) < 0.5)
    predicted[confused] = 1 - truth[confused]
    other = np.where(predicted < 2, 1 - predicted, 0)
    rows[np.arange(900), predicted] = best
    rows[np.arange(900), other] += 0.96 - best + 0.02 - 0.02
    return rows / rows.sum(axis=1, keepdims=True), truth


def test_a_class_that_is_always_right_is_always_answered(answers):
    probabilities, truth = answers
    general = choose_decision({"none": probabilities}, truth, LABELS)
    by_class = choose_decision({"none": probabilities}, truth, LABELS, has_class_thresholds=True)
    assert by_class.abstain_below_by_class[2] == 0.0
    assert by_class.abstain_below_by_class[0] > 0.5
    assert by_class.reference.coverage > general.reference.coverage
    right = probabilities.argmax(axis=1) == truth
    assert by_class.reference.accuracy >= 1 - (1 - right.mean()) / 2 - 1e-6


def test_the_reference_is_what_the_rule_gives(answers):
    probabilities, truth = answers
    found = choose_decision({"none": probabilities}, truth, LABELS)
    kept = probabilities.astype(np.float32).max(axis=1).astype(float) >= found.abstain_below
    right = probabilities.argmax(axis=1) == truth
    assert found.reference.coverage == pytest.approx(kept.mean(), abs=1e-6)
    assert found.reference.accuracy == pytest.approx(right[kept].mean(), abs=1e-6)
    assert found.roll_up is None


def test_groups_answer_what_classes_cannot(answers):
    probabilities, truth = answers
    labels = (Label(name="cat", parent=0), Label(name="dog", parent=0), Label(name="car"))
    found = choose_decision({"none": probabilities}, truth, labels, (Group(name="animal"),))
    assert found.roll_up.coverage > 0.5
    assert found.roll_up.accuracy > found.reference.accuracy


def test_each_policy_has_sets_of_its_own(answers):
    probabilities, truth = answers
    found = choose_decision({"none": probabilities, "hflip": probabilities}, truth, LABELS)
    assert [one.tta for one in found.conformal] == ["none", "hflip"]


def test_a_rare_class_gets_no_threshold_of_its_own():
    probabilities = np.array([[0.9, 0.1]] * 200 + [[0.4, 0.6]] * 20)
    truth = np.array([0] * 180 + [1] * 20 + [0] * 20)
    found = choose_decision({"none": probabilities}, truth, LABELS[:2], has_class_thresholds=True)
    assert found.abstain_below_by_class[1] is None


def read(tmp_path, parents, labels=LABELS):
    file = tmp_path / "hierarchy.json"
    file.write_text(json.dumps(parents))
    return read_hierarchy(file, labels)


def test_a_hierarchy_names_classes_by_name_or_id_and_parents_first(tmp_path):
    labels = (Label(name="cat", id="n02121620"), *LABELS[1:])
    found, groups = read(
        tmp_path, {"n02121620": "animal", "dog": "animal", "animal": "thing"}, labels
    )
    assert [group.name for group in groups] == ["thing", "animal"]
    assert [group.parent for group in groups] == [None, 0]
    assert [label.parent for label in found] == [1, 1, None]


@pytest.mark.parametrize(
    ("parents", "said"),
    [
        ([], "an object from child to parent"),
        ({"cat": 3}, "an object from child to parent"),
        ({"mouse": "animal"}, "'mouse' is neither a class nor a parent"),
        ({"cat": "dog"}, "'dog' is a class and cannot be a parent"),
        ({"cat": "a", "a": "b", "b": "a"}, "is its own ancestor"),
        ({"cat": "a", "a": "a"}, "is its own ancestor"),
    ],
)
def test_a_hierarchy_that_is_none_is_refused(tmp_path, parents, said):
    with pytest.raises(TrainingError, match=said):
        read(tmp_path, parents)


def test_a_file_that_is_not_there_or_no_json_is_told(tmp_path):
    with pytest.raises(TrainingError, match="No such file"):
        read_hierarchy(tmp_path / "absent.json", LABELS)
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(TrainingError, match=r"text\.json"):
        read_hierarchy(tmp_path / "text.json", LABELS)
