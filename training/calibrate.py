"""Calibration: one temperature for the logits, and a threshold below which to abstain.

Temperature scaling (Guo 2017, "On Calibration of Modern Neural Networks", section 4.2) leaves the
order of the classes alone: accuracy stays, confidence becomes honest.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from service.bundle.manifest import Calibration, Decision, DecisionReference
from training.scores import (
    Indices,
    Probabilities,
    expected_calibration_error,
    reliability,
    top_k_hits,
)

# Nothing outside has ever been a sensible temperature; a fit that ends here has not converged.
_LOWEST, _HIGHEST = 0.05, 20.0
_TOLERANCE = 1e-6
_GOLDEN = (math.sqrt(5) - 1) / 2


def softmax(logits: NDArray[np.floating], temperature: float = 1.0) -> NDArray[np.float64]:
    """Returns float64 probabilities [N, C] of logits [N, C]."""
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return probabilities


def fit_temperature(logits: NDArray[np.floating], labels: Indices) -> float:
    """Returns the temperature with the least negative log-likelihood, by golden section.

    The likelihood has one minimum over the temperature (it is convex in its inverse), so bracketing
    finds it without a learning rate. `logits` are [N, C], `labels` int64 [N].
    """
    exact = logits.astype(np.float64)
    of_label = exact[np.arange(len(labels)), labels]
    largest = exact.max(axis=1)

    def nll(log_temperature: float) -> float:
        inverse = math.exp(-log_temperature)
        spread = np.log(np.exp((exact - largest[:, None]) * inverse).sum(axis=1))
        return float((spread - (of_label - largest) * inverse).mean())

    low, high = math.log(_LOWEST), math.log(_HIGHEST)
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    nll_left, nll_right = nll(left), nll(right)
    while high - low > _TOLERANCE:
        if nll_left <= nll_right:
            high, right, nll_right = right, left, nll_left
            left = high - _GOLDEN * (high - low)
            nll_left = nll(left)
        else:
            low, left, nll_left = left, right, nll_right
            right = low + _GOLDEN * (high - low)
            nll_right = nll(right)
    return math.exp((low + high) / 2)


def calibrate(logits: NDArray[np.floating], labels: Indices) -> Calibration:
    """Returns the fitted temperature with the calibration error before and after it."""
    temperature = fit_temperature(logits, labels)

    def ece(probabilities: Probabilities) -> float:
        return expected_calibration_error(reliability(probabilities, labels))

    return Calibration(
        temperature=temperature,
        ece_before=ece(softmax(logits)),
        ece_after=ece(softmax(logits, temperature)),
    )


def half_error(hits: NDArray[np.bool_]) -> float:
    """Returns the accuracy with half the error of `hits`, the default target of a threshold."""
    return 1 - (1 - float(hits.mean())) / 2


def _between(low: float, high: float) -> float:
    """Returns the shortest decimal near the middle, so that what is kept is not lost to rounding.

    It is above `low` and at most `high`.
    """
    middle = (low + high) / 2
    return next(
        (short for digits in range(2, 17) if low < (short := round(middle, digits)) <= high), high
    )


def choose_threshold(
    probabilities: Probabilities, labels: Indices, target_accuracy: float | None = None
) -> Decision:
    """Returns the threshold that answers the most images at `target_accuracy`, with what it gave.

    The default target halves the error of answering everything: 94 % becomes 97 %, 60 % becomes
    80 %. One rule then fits every model, and asks for nothing that its data cannot show. Images are
    taken in order of falling confidence; of all cuts at which those kept reach the target, the one
    that keeps most wins. When none does, or when everything already reaches it, there is no
    threshold.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    hits = top_k_hits(probabilities, labels, 1)
    if target_accuracy is None:
        target_accuracy = half_error(hits)
    order = np.argsort(-confidence, kind="stable")
    ordered = confidence[order]
    accuracy = np.cumsum(hits[order]) / np.arange(1, len(order) + 1)
    # Equal confidences fall on the same side of any threshold.
    is_cut = np.append(ordered[1:] < ordered[:-1], True)
    reaching = np.flatnonzero(is_cut & (accuracy >= target_accuracy))
    if not len(reaching) or reaching[-1] == len(order) - 1:
        return Decision()
    last = int(reaching[-1])
    return Decision(
        abstain_below=_between(float(ordered[last + 1]), float(ordered[last])),
        reference=DecisionReference(
            coverage=(last + 1) / len(order), accuracy=float(accuracy[last])
        ),
    )
