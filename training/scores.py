"""How good predictions are: pure NumPy over probabilities [N, C] and class indices [N]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Probabilities = NDArray[np.float32] | NDArray[np.float64]
Indices = NDArray[np.int64]

ECE_BINS = 15
# The two-sided 95 % quantile of the normal distribution.
_Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityBin:
    """Predictions whose confidence lies in (lower, upper]; means are 0 where `images` is 0."""

    lower: float
    upper: float
    images: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassScore:
    """One row of the per-class table; `recall` is the class's accuracy. None: nothing to divide."""

    name: str
    images: int
    predicted: int
    recall: float | None
    precision: float | None
    f1: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MacroScore:
    """Means over the classes that have images, each counting the same; never predicted counts 0."""

    recall: float
    precision: float
    f1: float


def top_k_hits(probabilities: Probabilities, labels: Indices, k: int) -> NDArray[np.bool_]:
    """Returns bool [N]: the label is among the `k` best classes; ties go to the lower index."""
    of_label = probabilities[np.arange(len(labels)), labels][:, None]
    classes = np.arange(probabilities.shape[1])
    before = (probabilities > of_label) | (
        (probabilities == of_label) & (classes < labels[:, None])
    )
    hits: NDArray[np.bool_] = before.sum(axis=1) < k
    return hits


def negative_log_likelihood(probabilities: Probabilities, labels: Indices) -> float:
    """Returns the mean of -ln p(label), in nats; a probability of 0 counts as float32's least."""
    of_label = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.maximum(of_label, np.finfo(np.float32).tiny)).mean())


def brier_score(probabilities: Probabilities, labels: Indices) -> float:
    """Returns the mean squared distance to the right answer, 0 to 2 (Brier 1950)."""
    wrong = probabilities.astype(np.float64)
    wrong[np.arange(len(labels)), labels] -= 1
    return float((wrong**2).sum(axis=1).mean())


def reliability(
    probabilities: Probabilities, labels: Indices, bins: int = ECE_BINS
) -> tuple[ReliabilityBin, ...]:
    """Returns `bins` equally wide bins of top-1 confidence, lowest first (Guo 2017, section 2)."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    hits = top_k_hits(probabilities, labels, 1)
    # Bins are open below, so that a confidence of exactly 1 falls in the last.
    position = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    found = []
    for index in range(bins):
        inside = position == index
        images = int(inside.sum())
        found.append(
            ReliabilityBin(
                lower=index / bins,
                upper=(index + 1) / bins,
                images=images,
                confidence=float(confidence[inside].mean()) if images else 0.0,
                accuracy=float(hits[inside].mean()) if images else 0.0,
            )
        )
    return tuple(found)


def expected_calibration_error(bins: tuple[ReliabilityBin, ...]) -> float:
    """Returns the mean gap between confidence and accuracy, weighted by the images of each bin."""
    images = sum(one.images for one in bins)
    gaps = sum(one.images * abs(one.confidence - one.accuracy) for one in bins)
    return gaps / images if images else 0.0


def wilson_interval(hits: int, images: int) -> tuple[float, float]:
    """Returns the 95 % interval of a proportion (Wilson 1927); it never leaves [0, 1]."""
    share, z2 = hits / images, _Z95**2
    centre = (share + z2 / (2 * images)) / (1 + z2 / images)
    half = _Z95 * math.sqrt(share * (1 - share) / images + z2 / (4 * images**2))
    half /= 1 + z2 / images
    # Rounding would else leave the ends a hair inside.
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    return low, 1.0 if hits == images else min(1.0, centre + half)


def confusion_matrix(predicted: Indices, labels: Indices, classes: int) -> NDArray[np.int64]:
    """Returns int64 [C, C]: row = label, column = predicted class."""
    flat = np.bincount(labels * classes + predicted, minlength=classes * classes)
    matrix: NDArray[np.int64] = flat.reshape(classes, classes)
    return matrix


def class_scores(matrix: NDArray[np.int64], names: tuple[str, ...]) -> tuple[ClassScore, ...]:
    """Returns recall, precision and F1 of every class from a confusion matrix [C, C]."""
    rows = []
    for index, name in enumerate(names):
        hits = int(matrix[index, index])
        images, predicted = int(matrix[index].sum()), int(matrix[:, index].sum())
        rows.append(
            ClassScore(
                name=name,
                images=images,
                predicted=predicted,
                recall=hits / images if images else None,
                precision=hits / predicted if predicted else None,
                f1=2 * hits / (images + predicted) if images + predicted else None,
            )
        )
    return tuple(rows)


def macro_score(classes: Sequence[ClassScore]) -> MacroScore:
    """Returns the means over the classes, of which one or more has images."""
    seen = [one for one in classes if one.images]
    return MacroScore(
        recall=sum(one.recall or 0.0 for one in seen) / len(seen),
        precision=sum(one.precision or 0.0 for one in seen) / len(seen),
        f1=sum(one.f1 or 0.0 for one in seen) / len(seen),
    )
