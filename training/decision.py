"""The `decision` of a manifest: chosen and measured on the answers to validation images."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from service.bundle.decision import Decider
from service.bundle.manifest import Decision, DecisionReference, Group, Label, TtaPolicy
from training.calibrate import choose_threshold, half_error
from training.conformal import calibrate_sets
from training.scores import Indices, Probabilities, top_k_hits

# With fewer images a threshold of a class alone would follow chance.
_MIN_CLASS_IMAGES = 50


def choose_decision(
    answers: Mapping[TtaPolicy, Probabilities],
    truth: Indices,
    labels: tuple[Label, ...],
    groups: tuple[Group, ...] = (),
    *,
    target_accuracy: float | None = None,
    has_class_thresholds: bool = False,
) -> Decision:
    """Returns thresholds, what they give, and label sets.

    Args:
        answers: Probabilities [N, C] of each test-time augmentation policy; "none" is needed.
        truth: int64 [N], the right class of each image.
        labels: The classes, with their parents.
        groups: What the parents are.
        target_accuracy: Of the answers above the threshold; None halves the error.
        has_class_thresholds: Choose one for each class that enough images are taken for.
    """
    plain = answers["none"]
    decision = choose_threshold(plain, truth, target_accuracy)
    if has_class_thresholds:
        target = target_accuracy or half_error(top_k_hits(plain, truth, 1))
        decision = _by_class(decision, plain, truth, target)
    sets = [calibrate_sets(found, truth, tta) for tta, found in answers.items()]
    decision = decision.model_copy(update={"conformal": tuple(one for one in sets if one)})
    return _measured(decision, plain, truth, labels, groups)


def _by_class(
    decision: Decision, probabilities: Probabilities, truth: Indices, target: float
) -> Decision:
    """Returns the decision with a threshold for each class that is predicted often enough.

    Where a class reaches the target at any score its threshold is 0; where it reaches it at none,
    the general one holds.
    """
    predicted = probabilities.argmax(axis=1)
    thresholds: list[float | None] = []
    for index in range(probabilities.shape[1]):
        mine = predicted == index
        threshold = None
        if mine.sum() >= _MIN_CLASS_IMAGES:
            hits = truth[mine] == index
            if hits.mean() >= target:
                threshold = 0.0
            else:
                threshold = choose_threshold(probabilities[mine], truth[mine], target).abstain_below
        thresholds.append(threshold)
    return decision.model_copy(update={"abstain_below_by_class": tuple(thresholds)})


def _measured(
    decision: Decision,
    probabilities: Probabilities,
    truth: Indices,
    labels: tuple[Label, ...],
    groups: tuple[Group, ...],
) -> Decision:
    """Returns the decision with what the served rule gives on the images it was chosen on."""
    if decision.abstain_below is None and not any(decision.abstain_below_by_class or ()):
        return decision
    decider = Decider(decision, labels, groups)
    answered, rolled = [], []
    abstained = 0
    for row, right in zip(probabilities.astype(np.float32), truth.tolist(), strict=True):
        best = int(row.argmax())
        threshold = decider.threshold(best)
        if threshold is None or float(row[best]) >= threshold:
            answered.append(best == right)
            continue
        abstained += 1
        group = decider.find_group(row, threshold)
        if group is not None:
            rolled.append(decider.is_member(group, right))
    updates: dict[str, DecisionReference] = {}
    if answered:
        updates["reference"] = _share(answered, len(truth))
    if rolled:
        updates["roll_up"] = _share(rolled, abstained)
    return decision.model_copy(update=updates)


def _share(hits: list[bool], of: int) -> DecisionReference:
    return DecisionReference(
        coverage=round(len(hits) / of, 6), accuracy=round(float(np.mean(hits)), 6)
    )
