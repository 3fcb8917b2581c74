"""What may be acted on: abstention, the group that is sure instead, and sets of labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.bundle.manifest import ConformalLevel, Decision, Group, Label, TtaPolicy
from service.bundle.postprocess import Prediction, predict
from service.errors import ErrorCode, RequestError

# A client writes 0.9; the level may be the float next to it.
_SAME_COVERAGE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPrediction:
    """A group of classes; `score` is the sum of their probabilities, in [0, 1]."""

    label: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether the best class may be acted on.

    Attributes:
        abstained: Whether its score is under the threshold.
        threshold: The one that was applied; None when the bundle has none.
        group: The narrowest group that reaches the threshold, when the best class does not.
    """

    abstained: bool
    threshold: float | None
    group: GroupPrediction | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSet:
    """The fewest labels that hold the right one with the given coverage, best first."""

    coverage: float
    predictions: tuple[Prediction, ...]


class Decider:
    """Applies the `decision` of a manifest, with its classes and groups."""

    def __init__(
        self, decision: Decision, labels: tuple[Label, ...], groups: tuple[Group, ...] = ()
    ) -> None:
        """Makes the tables that answers are looked up in; the manifest has checked the indices."""
        self._labels = tuple(label.name for label in labels)
        by_class = decision.abstain_below_by_class or (None,) * len(labels)
        self._thresholds = [decision.abstain_below if one is None else one for one in by_class]
        self._groups = groups
        self._members, self._depths = _expand(labels, groups)
        self._levels = {one.tta: one.levels for one in decision.conformal}

    def threshold(self, index: int) -> float | None:
        """Returns the score under which the class `index` is not answered, if there is one."""
        return self._thresholds[index]

    def decide(self, probabilities: NDArray[np.float32], best: int) -> Verdict:
        """Returns the verdict on float32 [C] whose best class has the index `best`."""
        threshold = self._thresholds[best]
        if threshold is None or float(probabilities[best]) >= threshold:
            return Verdict(abstained=False, threshold=threshold)
        index = self.find_group(probabilities, threshold)
        if index is None:
            return Verdict(abstained=True, threshold=threshold)
        score = min(1.0, float(self._members[index] @ probabilities))
        group = GroupPrediction(label=self._groups[index].name, score=score)
        return Verdict(abstained=True, threshold=threshold, group=group)

    def find_level(self, coverage: float, tta: TtaPolicy) -> ConformalLevel:
        """Returns the calibrated level with at least this coverage.

        Raises:
            RequestError: `invalid_argument`: no such level was calibrated, or not for these views.
        """
        if not 0 < coverage < 1:
            raise _invalid("coverage lies between 0 and 1")
        levels = self._levels.get(tta)
        if levels is None:
            known = ", ".join(self._levels) or "none"
            raise _invalid(f"this model has label sets for the policies: {known}")
        for level in levels:
            if level.coverage >= coverage - _SAME_COVERAGE:
                return level
        raise _invalid(f"this model's label sets go up to a coverage of {levels[-1].coverage}")

    def label_set(self, probabilities: NDArray[np.float32], level: ConformalLevel) -> LabelSet:
        """Returns the classes of float32 [C] that reach the level's score; at least the best."""
        # In float64, because a float32 next to the score would else be taken for it.
        reaching = probabilities.astype(np.float64) >= level.min_score
        count = max(1, int(np.count_nonzero(reaching)))
        return LabelSet(
            coverage=level.coverage, predictions=predict(probabilities, self._labels, count)
        )

    def find_group(self, probabilities: NDArray[np.float32], threshold: float) -> int | None:
        """Returns the deepest group that reaches the threshold; of several the most probable."""
        if not self._groups:
            return None
        scores = self._members @ probabilities
        reaching = np.flatnonzero(scores >= threshold).tolist()
        return max(reaching, key=lambda one: (self._depths[one], scores[one]), default=None)

    def is_member(self, group: int, index: int) -> bool:
        """Whether the class `index` is below the group."""
        return bool(self._members[group, index])


def _expand(
    labels: tuple[Label, ...], groups: tuple[Group, ...]
) -> tuple[NDArray[np.float32], list[int]]:
    """Returns float32 [G, C], 1 where a class is below a group, and the depth of each group."""
    members = np.zeros((len(groups), len(labels)), np.float32)
    for index, label in enumerate(labels):
        parent = label.parent
        while parent is not None:
            members[parent, index] = 1
            parent = groups[parent].parent
    depths: list[int] = []
    for group in groups:
        depths.append(0 if group.parent is None else depths[group.parent] + 1)
    return members, depths


def _invalid(detail: str) -> RequestError:
    return RequestError(ErrorCode.INVALID_ARGUMENT, detail)
