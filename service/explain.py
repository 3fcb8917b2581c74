"""How the evidence for a class is found: the model's own activation map, or by covering places.

A class activation map comes out of the same run as the answer, where the graph has one. For other
models parts of the view are covered one after the other (Zeiler 2014, "Visualizing and
Understanding Convolutional Networks", section 4.2): the job has fifty views and runs as one batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np

from service.bundle.decode import Limits
from service.bundle.decode_cost import estimate_decode_s
from service.bundle.heatmap import (
    OCCLUSION_VIEWS,
    class_evidence,
    draw_overlay,
    occlude,
    occlusion_evidence,
)
from service.bundle.manifest import Manifest
from service.bundle.postprocess import Prediction, average_views
from service.bundle.preprocess import PreparedImage, prepare
from service.classification import ExplainOptions, Explanation, Timings
from service.errors import ErrorCode, RequestError
from service.job import Job, Outcome
from service.model import Model

METHODS: Final = ("auto", "cam", "occlusion")


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One way to find the evidence: the views that it runs and the outputs that it needs."""

    name: str
    view_count: int
    outputs: tuple[str, ...]

    def draft(
        self, model: Model, image: bytes, limits: Limits, deadline: float
    ) -> Callable[..., Job]:
        """Returns the job for one encoded image, complete but for its `finish`."""
        return partial(
            Job,
            lane=model.lane,
            prepare=partial(self._prepare, image, model.bundle.manifest, limits),
            view_count=self.view_count,
            encoded_bytes=len(image),
            deadline=deadline,
            outputs=self.outputs,
            decode_cost_s=estimate_decode_s(image, limits.max_pixels),
        )

    def _prepare(self, image: bytes, manifest: Manifest, limits: Limits) -> PreparedImage:
        """Returns the views to run; the first is the one that `classify` would run."""
        prepared = prepare(image, manifest.preprocess, limits=limits)
        if self.view_count == 1:
            return prepared
        # What normalisation makes nothing of.
        red, green, blue = (round(255 * one) for one in manifest.normalisation.mean)
        return replace(prepared, views=occlude(prepared.views[0], (red, green, blue)))


_CAM: Final = Method(name="cam", view_count=1, outputs=("cam",))
_OCCLUSION: Final = Method(name="occlusion", view_count=OCCLUSION_VIEWS, outputs=())


def choose_method(options: ExplainOptions, manifest: Manifest) -> Method:
    """Returns how this model can be explained as asked.

    Raises:
        RequestError: `invalid_argument`: there is no such method or class, or not for this model.
    """
    if options.method not in METHODS:
        raise _invalid(f"method must be one of {', '.join(METHODS)}")
    if options.index is not None and not 0 <= options.index < len(manifest.labels):
        raise _invalid(f"index must be from 0 to {len(manifest.labels) - 1}")
    has_cam = manifest.has_output("cam")
    if options.method == "cam" and not has_cam:
        raise _invalid("this model has no class activation map; occlusion explains every model")
    return _CAM if has_cam and options.method != "occlusion" else _OCCLUSION


def conclude(
    method: Method, model: Model, outcome: Outcome, options: ExplainOptions, start: float
) -> Explanation:
    """Returns the explanation that the outcome of a job gives.

    Raises:
        RequestError: `nonfinite_output`.
    """
    probabilities = average_views(outcome.probabilities[:1])
    index = int(probabilities.argmax()) if options.index is None else options.index
    if method is _CAM:
        evidence = class_evidence(outcome.extra["cam"][0], index)
    else:
        evidence = occlusion_evidence(outcome.probabilities, index)
    if not np.isfinite(evidence).all():
        raise RequestError(ErrorCode.NONFINITE_OUTPUT, "the model's output is not a number")
    overlay = draw_overlay(outcome.prepared.views[0], evidence) if options.has_overlay else None
    return Explanation(
        model=model.name,
        version=model.version,
        method=method.name,
        prediction=Prediction(
            label=model.labels[index], index=index, score=float(probabilities[index])
        ),
        evidence=evidence,
        overlay=overlay,
        width=outcome.prepared.width,
        height=outcome.prepared.height,
        format=outcome.prepared.format,
        timings=Timings(
            decode_s=outcome.decode_s,
            queue_s=outcome.queue_s,
            infer_s=outcome.infer_s,
            total_s=time.monotonic() - start,
        ),
    )


def _invalid(detail: str) -> RequestError:
    return RequestError(ErrorCode.INVALID_ARGUMENT, detail)
