"""Probabilities of an image's views -> a calibrated, ordered answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from service.errors import ErrorCode, RequestError

Average = Literal["arithmetic", "geometric"]

# Up to here repeated maxima beat a sort of 1,000 classes.
_FEW: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One class of an answer; `score` is its probability in [0, 1]."""

    label: str
    index: int
    score: float


def average_views(
    probabilities: NDArray[np.float32], average: Average = "arithmetic"
) -> NDArray[np.float32]:
    """Returns one distribution float32 [C] for the views of one image, float32 [V, C].

    The geometric mean is renormalised; it lets one view veto a class.

    Raises:
        RequestError: `nonfinite_output` when a value is NaN or infinite.
    """
    # One call that a NaN or an infinity anywhere shows in, where `isfinite(...).all()` takes two.
    flat = probabilities.ravel()
    if not math.isfinite(flat.dot(flat)):
        raise RequestError(ErrorCode.NONFINITE_OUTPUT, "the model's output is not a number")
    if len(probabilities) == 1:
        only: NDArray[np.float32] = probabilities[0]
        return only
    if average == "arithmetic":
        mean: NDArray[np.float32] = probabilities.mean(axis=0, dtype=np.float32)
        return mean
    tiny = np.finfo(np.float32).tiny
    logs = np.log(np.maximum(probabilities, tiny)).mean(axis=0, dtype=np.float32)
    weights = np.exp(logs - logs.max())
    geometric: NDArray[np.float32] = weights / weights.sum(dtype=np.float32)
    return geometric


def weigh(
    probabilities: Sequence[NDArray[np.float32]], weights: Sequence[float]
) -> NDArray[np.float32]:
    """Returns the weighted mean of the members of an ensemble, each float32 [..., C]."""
    total = sum(weights)
    mean = np.zeros_like(probabilities[0])
    for one, weight in zip(probabilities, weights, strict=True):
        mean += one * np.float32(weight / total)
    return mean


def top_k(probabilities: NDArray[np.float32], k: int) -> list[int]:
    """Returns the indices of the `k` largest of finite float32 [C], best first.

    Ties go to the lower index; `k` above C gives C indices.
    """
    if k > _FEW or k >= len(probabilities):
        order: list[int] = np.argsort(-probabilities, kind="stable")[:k].tolist()
        return order
    # The few that people ask for, one maximum after the other: 3 us for 5 of 1,000 classes where
    # a partition and a sort of what is above it take 10, and a full sort more.
    left = probabilities.copy()
    best: list[int] = []
    for _ in range(k):
        index = int(left.argmax())
        best.append(index)
        left[index] = -np.inf
    return best


def predict(
    probabilities: NDArray[np.float32], labels: tuple[str, ...], k: int
) -> tuple[Prediction, ...]:
    """Returns the `k` best classes of float32 [C] with their labels, best first."""
    return tuple(
        Prediction(label=labels[index], index=index, score=float(probabilities[index]))
        for index in top_k(probabilities, k)
    )
