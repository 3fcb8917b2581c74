"""Split conformal prediction: sets of labels that hold the right one as often as was asked for.

The score of an image is the probability of its own class, and the set of a new image is every class
that reaches a low quantile of those scores (Sadinle 2019, "Least Ambiguous Set-Valued Classifiers
with Bounded Error Levels"): of all rules with that coverage the one with the fewest labels.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from service.bundle.manifest import Conformal, ConformalLevel, TtaPolicy
from training.scores import Indices, Probabilities, top_k_hits

_COVERAGES = (
    *(one / 100 for one in range(50, 90, 5)),
    *(one / 100 for one in range(90, 100)),
    *(0.995, 0.999),
)


def calibrate_sets(
    probabilities: Probabilities, labels: Indices, tta: TtaPolicy
) -> Conformal | None:
    """Returns the levels that so many images can show, or None when they can show none.

    A new image from where these came from is covered with at least the probability `coverage`: of
    n + 1 scores in random order the last is among the k lowest with probability k / (n + 1). A
    level is kept when half of the images suffice for it, because each half is also measured with
    the score that the other chose; halves are drawn from a fixed seed.
    """
    scores = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    # The best class is always in the set.
    hits = top_k_hits(probabilities, labels, 1)
    order = np.random.default_rng(0).permutation(len(labels))
    halves = order[::2], order[1::2]
    levels = []
    for coverage in _COVERAGES:
        if _rank(len(halves[1]), coverage) < 1:
            break
        covered, sizes = [], []
        for chosen, measured in (halves, halves[::-1]):
            least = _quantile(scores[chosen], coverage)
            covered.append((scores[measured] >= least) | hits[measured])
            sizes.append((probabilities[measured] >= least).sum(axis=1).clip(1))
        levels.append(
            ConformalLevel(
                coverage=coverage,
                min_score=min(1.0, _quantile(scores, coverage)),
                measured_coverage=round(float(np.concatenate(covered).mean()), 6),
                mean_labels=round(float(np.concatenate(sizes).mean()), 6),
            )
        )
    return Conformal(tta=tta, images=len(labels), levels=tuple(levels)) if levels else None


def _rank(images: int, coverage: float) -> int:
    # 1 - 0.9 is a hair under 0.1, and 100 images must give the rank 10.
    return math.floor((images + 1) * (1 - coverage) + 1e-9)


def _quantile(scores: NDArray[np.float64], coverage: float) -> float:
    """Returns the score that at least the share `coverage` of new ones will reach."""
    rank = _rank(len(scores), coverage)
    return float(np.partition(scores, rank - 1)[rank - 1])
