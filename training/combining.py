"""Makes ensembles and cascades of bundles that exist, measured on labelled images.

Members answer through the served path, and are averaged and escalated by the functions that serve.
A cascade's threshold is chosen on one half of the images and measured on the other, so that the
numbers in its manifest are not those that chose it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from service.bundle.combination import (
    Cascade,
    Ensemble,
    Measured,
    Stage,
    WeightedMember,
    is_sure,
    publish_combination,
)
from service.bundle.manifest import TtaPolicy
from service.bundle.postprocess import weigh
from service.bundle.repository import Bundle
from training.data import Dataset
from training.errors import TrainingError
from training.evaluate import check_labelled, open_bundle, score_images
from training.scores import wilson_interval

_SEED: Final = 0

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A bundle that may become a member, and the views it is shown."""

    bundle: Bundle
    tta: TtaPolicy = "none"

    @property
    def reference(self) -> str:
        """NAME@VERSION, with the views when they are not plain."""
        suffix = "" if self.tta == "none" else f" {self.tta}"
        return f"{self.bundle.reference}{suffix}"

    def facts(self) -> dict[str, str]:
        """Returns what a manifest says of a member."""
        return {
            "model": self.bundle.reference,
            "digest": self.bundle.digest,
            "tta": self.tta,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A candidate's answers: probabilities float32 [N, C], and CPU-milliseconds an image."""

    probabilities: NDArray[np.float32]
    cpu_ms: float

    @property
    def best(self) -> NDArray[np.float32]:
        """The probability of the best class, float32 [N]."""
        best: NDArray[np.float32] = self.probabilities.max(axis=1)
        return best

    def hits(self, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether the best class is the right one, bool [N]."""
        hits: NDArray[np.bool_] = self.probabilities.argmax(axis=1) == labels
        return hits


def make_ensemble(
    candidates: Sequence[Candidate],
    weights: Sequence[float],
    dataset: Dataset,
    *,
    name: str,
    repository: Path,
    on_progress: Progress | None = None,
) -> Path:
    """Publishes the ensemble of the candidates; returns its folder.

    Raises:
        TrainingError: The candidates do not fit together, or an image is refused.
        BundleError: It cannot be published under this name.
    """
    _check(candidates, dataset)
    if len(weights) != len(candidates):
        raise TrainingError("there are as many weights as members")
    ensemble = Ensemble(
        name=name,
        version=1,
        created=datetime.now(UTC),
        members=tuple(
            WeightedMember.model_validate({**one.facts(), "weight": weight})
            for one, weight in zip(candidates, weights, strict=True)
        ),
    )
    scored = [score(one, dataset, on_progress) for one in candidates]
    mean = weigh([one.probabilities for one in scored], weights)
    hits = mean.argmax(axis=1) == dataset.labels
    measured = _measure(dataset, hits)
    return publish_combination(repository, ensemble.model_copy(update={"measured": measured}))


def tune_cascade(
    first: Candidate,
    last: Candidate,
    dataset: Dataset,
    *,
    name: str,
    repository: Path,
    accuracy: float | None = None,
    cost_share: float | None = None,
    on_progress: Progress | None = None,
) -> Path:
    """Publishes the cascade of two candidates at the best threshold; returns its folder.

    Args:
        first: Asked for every image.
        last: Asked when the first is not sure; it may be the same bundle with more views.
        dataset: Labelled images that trained neither.
        name: Of the cascade.
        repository: Where it is published.
        accuracy: Take the cheapest threshold that reaches it.
        cost_share: Take the most accurate threshold whose CPU time an image is at most this share
            of always asking the last. Exactly one of the two is given.
        on_progress: Called with the number of images that have just been finished.

    Raises:
        TrainingError: The candidates do not fit together, or no threshold does what is asked.
        BundleError: It cannot be published under this name.
    """
    _check((first, last), dataset)
    if (accuracy is None) == (cost_share is None):
        raise TrainingError("give either an accuracy or a share of the cost")
    scored = score(first, dataset, on_progress), score(last, dataset, on_progress)
    chosen, held_out = _halve(dataset)
    thresholds = Thresholds(
        best=scored[0].best[chosen],
        first_hits=scored[0].hits(dataset.labels)[chosen],
        last_hits=scored[1].hits(dataset.labels)[chosen],
        first_cost=scored[0].cpu_ms / scored[1].cpu_ms,
    )
    if accuracy is not None:
        threshold = thresholds.cheapest(accuracy)
    else:
        assert cost_share is not None
        threshold = thresholds.most_accurate(cost_share)
    stage = Stage.model_validate({**first.facts(), "escalate_below": threshold})
    sure = np.array([is_sure(float(best), stage) for best in scored[0].best[held_out]])
    hits = np.where(
        sure,
        scored[0].hits(dataset.labels)[held_out],
        scored[1].hits(dataset.labels)[held_out],
    )
    escalated = float(1 - sure.mean())
    measured = _measure(
        dataset, hits, escalated=escalated, cost_share=thresholds.first_cost + escalated
    )
    cascade = Cascade(
        name=name,
        version=1,
        created=datetime.now(UTC),
        measured=measured,
        members=(stage, Stage.model_validate(last.facts())),
    )
    return publish_combination(repository, cascade)


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """The thresholds between two stages that make a difference on some images, and what each gives.

    Attributes:
        best: Probability of the first stage's best class, float32 [N].
        first_hits: Whether the first stage is right, bool [N].
        last_hits: Whether the last stage is right, bool [N].
        first_cost: CPU time of the first stage as a share of the last one's.
    """

    best: NDArray[np.float32]
    first_hits: NDArray[np.bool_]
    last_hits: NDArray[np.bool_]
    first_cost: float

    def table(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Returns thresholds, accuracies and costs, each float64 [K], cheapest first."""
        order = np.argsort(self.best, kind="stable")
        best = self.best[order].astype(np.float64)
        count = len(best)
        # With k escalated, the k least sure: right are the last stage's hits among those and the
        # first one's among the rest.
        last = np.concatenate([[0], np.cumsum(self.last_hits[order])])
        first = np.concatenate([[0], np.cumsum(self.first_hits[order])])
        accuracies = (last + first[-1] - first) / count
        costs = self.first_cost + np.arange(count + 1) / count
        # Equal scores go on together; nothing is under 0 and, unless all are, nothing above 1.
        thresholds = np.append(best, 1.0)
        thresholds[0] = 0.0
        is_possible = np.append(True, np.diff(np.append(best, 1.0)) > 0)
        return thresholds[is_possible], accuracies[is_possible], costs[is_possible]

    def cheapest(self, accuracy: float) -> float:
        """Returns the threshold of least cost that reaches the accuracy.

        Raises:
            TrainingError: None does.
        """
        thresholds, accuracies, _ = self.table()
        reaching = np.flatnonzero(accuracies >= accuracy)
        if not len(reaching):
            raise TrainingError(
                f"no threshold reaches {accuracy:.4f}: the best gives {accuracies.max():.4f}"
            )
        return float(thresholds[reaching[0]])

    def most_accurate(self, cost_share: float) -> float:
        """Returns the threshold of most accuracy within the cost; of equals the cheapest.

        Raises:
            TrainingError: The first stage alone costs more.
        """
        thresholds, accuracies, costs = self.table()
        affordable = costs <= cost_share
        if not affordable.any():
            raise TrainingError(
                f"the first stage alone costs {self.first_cost:.2f} of the last one"
            )
        return float(thresholds[np.where(affordable, accuracies, -1.0).argmax()])


def score(candidate: Candidate, dataset: Dataset, on_progress: Progress | None = None) -> Scored:
    """Returns what a candidate answers through the served path, and what it costs.

    Raises:
        TrainingError: It has no fp32 variant, or an image is refused.
    """
    bundle = candidate.bundle
    session = open_bundle(bundle)
    start = time.process_time()
    answers = score_images(
        session, dataset, bundle.manifest.preprocess, tta=candidate.tta, on_progress=on_progress
    )
    cpu_ms = (time.process_time() - start) * 1000 / len(dataset)
    return Scored(probabilities=answers.probabilities, cpu_ms=cpu_ms)


def _check(candidates: Sequence[Candidate], dataset: Dataset) -> None:
    check_labelled(dataset)
    if len(candidates) < 2:
        raise TrainingError("a combination has at least two members")
    if len({one.reference for one in candidates}) != len(candidates):
        raise TrainingError("a member is named twice with the same views")
    labels = [tuple(label.name for label in one.bundle.manifest.labels) for one in candidates]
    for candidate, own in zip(candidates, labels, strict=True):
        if own != labels[0]:
            first = candidates[0].bundle.reference
            raise TrainingError(
                f"{candidate.bundle.reference} has not the labels of {first}, in their order"
            )


def _halve(dataset: Dataset) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the indices of two halves with the same share of each class."""
    try:
        halves = train_test_split(
            np.arange(len(dataset)), test_size=0.5, random_state=_SEED, stratify=dataset.labels
        )
    except ValueError as error:
        raise TrainingError(f"{dataset.name}: cannot be halved: {error}") from error
    return np.sort(halves[0]), np.sort(halves[1])


def _measure(
    dataset: Dataset,
    hits: NDArray[np.bool_],
    *,
    escalated: float | None = None,
    cost_share: float | None = None,
) -> Measured:
    right, images = int(hits.sum()), len(hits)
    return Measured(
        dataset=dataset.name,
        split=dataset.split,
        images=images,
        top1=right / images,
        top1_interval=wilson_interval(right, images),
        escalated=escalated,
        cost_share=cost_share,
    )
