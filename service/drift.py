"""How far the latest answers of a model are from validation, as its bundle recorded it.

Population stability index: the sum over bins of (p - q) ln(p / q), where p is the share of the
latest answers and q that of validation. Below 0.1 nothing happened, above 0.25 something did: the
rule of thumb of credit scoring, where it comes from. Bins of little mass are joined, or chance
would fill the sum.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.bundle.manifest import Reference

_WINDOW: Final = 1_000
_EVERY: Final = 50
# Embeddings and pixels are looked at in one answer of so many.
SAMPLED: Final = 8
_LEAST_MASS: Final = 0.04
# Where validation never varied, a hair would count as infinitely far.
_LEAST_VARIANCE: Final = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The drift of a window of answers.

    Attributes:
        predictions: Population stability index of the best classes.
        confidence: The same of their scores.
        embedding: How far the mean embedding moved, in standard deviations of validation (root mean
            square over the dimensions); None without embeddings.
    """

    predictions: float
    confidence: float
    embedding: float | None


class Drift:
    """The latest thousand answers of one model. For one event loop."""

    def __init__(self, reference: Reference) -> None:
        """Starts with an empty window."""
        self._classes = _Histogram(reference.predicted_classes)
        self._scores = _Histogram(reference.confidence_histogram)
        self._embeddings: _Moved | None = None
        mean, variance = reference.embedding_mean, reference.embedding_variance
        if mean is not None and variance is not None:
            self._embeddings = _Moved(np.array(mean), np.array(variance))
        self._bins = len(reference.confidence_histogram)
        self._answers = 0

    @property
    def is_sampling(self) -> bool:
        """Whether the next answer is one of those that are looked at more closely."""
        return self._answers % SAMPLED == SAMPLED - 1

    @property
    def wants_embedding(self) -> bool:
        """Whether the next answer should bring its embedding."""
        return self._embeddings is not None and self.is_sampling

    def add(
        self, index: int, score: float, embeddings: NDArray[np.float32] | None
    ) -> Measured | None:
        """Takes an answer's best class and score; returns the drift once in fifty answers.

        `embeddings` are float32 [V, D]; those of several views are no match for validation's.
        """
        self._classes.add(index)
        self._scores.add(min(int(score * self._bins), self._bins - 1))
        if embeddings is not None and len(embeddings) == 1 and self._embeddings is not None:
            self._embeddings.add(embeddings[0])
        self._answers += 1
        if self._answers % _EVERY:
            return None
        return Measured(
            predictions=self._classes.stability_index(),
            confidence=self._scores.stability_index(),
            embedding=None if self._embeddings is None else self._embeddings.distance(),
        )


class _Histogram:
    """Counts of the window, beside those of validation."""

    def __init__(self, reference: Sequence[int]) -> None:
        self._bin_of = _join(reference)
        bins = max(self._bin_of) + 1
        self._reference = np.bincount(self._bin_of, weights=reference, minlength=bins)
        self._counts = [0] * bins
        self._window: deque[int] = deque()

    def add(self, place: int) -> None:
        place = self._bin_of[place]
        self._counts[place] += 1
        self._window.append(place)
        if len(self._window) > _WINDOW:
            self._counts[self._window.popleft()] -= 1

    def stability_index(self) -> float:
        """Returns the index, less what chance alone gives for so many answers and images."""
        latest, before = np.array(self._counts) + 0.5, self._reference + 0.5
        p, q = latest / latest.sum(), before / before.sum()
        index = float(((p - q) * np.log(p / q)).sum())
        by_chance = (len(p) - 1) * float(1 / latest.sum() + 1 / before.sum())
        return max(0.0, index - by_chance)


class _Moved:
    """The mean of the latest embeddings, beside that of validation."""

    def __init__(self, mean: NDArray[np.float64], variance: NDArray[np.float64]) -> None:
        self._mean = mean
        self._variance = np.maximum(variance, _LEAST_VARIANCE * max(1e-12, float(variance.max())))
        self._sum = np.zeros_like(mean)
        self._window: deque[NDArray[np.float32]] = deque()

    def add(self, embedding: NDArray[np.float32]) -> None:
        self._sum += embedding
        self._window.append(embedding)
        if len(self._window) > _WINDOW // SAMPLED:
            self._sum -= self._window.popleft()

    def distance(self) -> float:
        count = len(self._window)
        if count == 0:
            return 0.0
        moved = (self._sum / count - self._mean) ** 2 / self._variance
        # The mean of so many varies by itself.
        return float(np.sqrt(max(0.0, moved.mean() - 1 / count)))


def _join(reference: Sequence[int]) -> list[int]:
    """Returns the bin of each place: neighbours share one until it holds 4 % of validation."""
    least = _LEAST_MASS * sum(reference)
    bins: list[int] = []
    current, mass = 0, 0.0
    for count in reference:
        if mass >= least:
            current, mass = current + 1, 0.0
        bins.append(current)
        mass += count
    if mass < least and current > 0:
        bins = [min(one, current - 1) for one in bins]
    return bins
