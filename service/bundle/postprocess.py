"""Probabilities of an image's views -> a calibrated, ordered answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.errors import ErrorCode, RequestError

Average = Literal["arithmetic", "geometric"]


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
    if not np.isfinite(probabilities).all():
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


def top_k(probabilities: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Returns the indices of the `k` largest of float32 [C], best first.

    Ties go to the lower index; `k` above C gives C indices. A full stable sort of 1,000 classes
    costs twice as much.
    """
    classes = probabilities.shape[0]
    if k >= classes:
        return np.argsort(-probabilities, kind="stable")
    threshold = np.partition(probabilities, classes - k)[classes - k]
    candidates = np.flatnonzero(probabilities >= threshold)
    best: NDArray[np.intp] = candidates[np.argsort(-probabilities[candidates], kind="stable")][:k]
    return best


def predict(
    probabilities: NDArray[np.float32], labels: tuple[str, ...], k: int
) -> tuple[Prediction, ...]:
    """Returns the `k` best classes of float32 [C] with their labels, best first."""
    return tuple(
        Prediction(label=labels[index], index=index, score=float(probabilities[index]))
        for index in top_k(probabilities, k).tolist()
    )
