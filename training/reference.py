"""What drift is measured against: validation as a model saw it when it was published."""

from __future__ import annotations

import numpy as np

from service.bundle.manifest import Reference
from training.evaluate import ScoredImages

_CONFIDENCE_BINS = 20


def describe_reference(scored: ScoredImages) -> Reference:
    """Returns counts of predicted classes and of top-1 confidence, and the embedding's moments."""
    probabilities, embedding = scored.probabilities, scored.embedding
    predicted = np.bincount(probabilities.argmax(axis=1), minlength=probabilities.shape[1])
    confidence, _ = np.histogram(
        probabilities.max(axis=1).clip(0, 1), bins=_CONFIDENCE_BINS, range=(0, 1)
    )
    mean = variance = None
    if embedding is not None:
        exact = embedding.astype(np.float64)
        mean = tuple(float(f"{one:.6g}") for one in exact.mean(axis=0))
        variance = tuple(float(f"{one:.6g}") for one in exact.var(axis=0))
    return Reference(
        predicted_classes=tuple(int(one) for one in predicted),
        confidence_histogram=tuple(int(one) for one in confidence),
        embedding_mean=mean,
        embedding_variance=variance,
    )
