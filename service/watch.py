"""What is noted of an answer whose model knows what validation looked like."""

from __future__ import annotations

from service.bundle.postprocess import Prediction
from service.job import Outcome
from service.metrics import Metrics
from service.model import Model

# Brightness is that of every fourth pixel of every fourth row: 3 us for 224 x 224.
_STRIDE = 4


def watch(model: Model, outcome: Outcome, best: Prediction, metrics: Metrics) -> None:
    """Notes the drift of an answer and, in one of eight, what the image looks like."""
    drift = model.drift
    if drift is None:
        return
    if drift.is_sampling:
        prepared = outcome.prepared
        metrics.drift.observe_image(
            model.name,
            prepared.format,
            pixels=prepared.width * prepared.height,
            brightness=float(prepared.views[0, ::_STRIDE, ::_STRIDE].mean()) / 255,
        )
    measured = drift.add(best.index, best.score, outcome.extra.get("embedding"))
    if measured is not None:
        metrics.drift.show(model.name, model.version, measured)
