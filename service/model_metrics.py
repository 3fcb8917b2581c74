"""Prometheus metrics of each model: its images, its batches, and where their time goes.

They are also what the statistics of the Open Inference Protocol are read from, so that these are
those of all workers too.
"""

from __future__ import annotations

import time
from functools import cache
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary

from service.classification import Timings
from service.exemplars import Exemplars

_STAGES: Final = ("decode", "queue", "infer", "postprocess")
_SECONDS: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
_VIEWS: Final = (1, 2, 4, 8, 16, 32, 64, 128)


class ModelMetrics:
    """What is counted by model and version. Part of `Metrics`."""

    def __init__(self, registry: CollectorRegistry, exemplars: Exemplars) -> None:
        """Makes the metrics in the registry of the others."""
        self._exemplars = exemplars
        model = ("model", "version")
        stage_seconds = Histogram(
            "fivecrop_stage_seconds",
            "Time of an image in one stage of the walk.",
            (*model, "stage"),
            buckets=_SECONDS,
            registry=registry,
        )
        image_seconds = Summary(
            "fivecrop_image_seconds",
            "Time of an image from the look-up of its model to its answer (ok) or error (failed).",
            (*model, "result"),
            registry=registry,
        )
        last_image = Gauge(
            "fivecrop_last_image_timestamp_seconds",
            "When an image was last answered.",
            model,
            registry=registry,
            multiprocess_mode="max",
        )
        batch_views = Histogram(
            "fivecrop_batch_views",
            "Views in a batch that ran.",
            ("model",),
            buckets=_VIEWS,
            registry=registry,
        )
        batches = Counter(
            "fivecrop_batches", "Batches that ran, by size.", (*model, "views"), registry=registry
        )
        batch_seconds = Counter(
            "fivecrop_batch_seconds",
            "Time of batches by size: in infer, and of their images in decode and postprocess.",
            (*model, "views", "stage"),
            registry=registry,
        )
        # `labels()` takes a lock and makes a key of strings at each call; these are called for each
        # image, and their labels are bounded.
        self._stage_seconds_of = cache(
            lambda name, version: tuple(
                stage_seconds.labels(name, version, stage) for stage in _STAGES
            )
        )
        self._image_seconds_of = cache(image_seconds.labels)
        self._last_image_of = cache(last_image.labels)
        self._batch_of = cache(
            lambda reference, views: (
                batch_views.labels(reference.partition("@")[0]),
                batches.labels(*reference.split("@"), views),
                batch_seconds.labels(*reference.split("@"), views, "decode"),
                batch_seconds.labels(*reference.split("@"), views, "infer"),
            )
        )
        self._batch_seconds_of = cache(batch_seconds.labels)

    def observe_stages(
        self,
        name: str,
        version: int,
        timings: Timings,
        postprocess_s: float,
        batch_views: int,
        trace_id: str | None,
    ) -> None:
        """Records where the time of an image went, the batch that it ran in included."""
        values = (timings.decode_s, timings.queue_s, timings.infer_s, postprocess_s)
        for histogram, value in zip(self._stage_seconds_of(name, version), values, strict=True):
            histogram.observe(value)
        self._batch_seconds_of(name, version, batch_views, "postprocess").inc(postprocess_s)
        if trace_id is not None:
            for stage, value in zip(_STAGES, values, strict=True):
                labels = {"model": name, "version": str(version), "stage": stage}
                self._exemplars.note("fivecrop_stage_seconds", labels, _SECONDS, value, trace_id)

    def observe_batch(self, reference: str, views: int, *, decode_s: float, infer_s: float) -> None:
        """Counts a batch of NAME@VERSION that ran; `decode_s` is the sum over its images."""
        size, batches, decode, infer = self._batch_of(reference, views)
        size.observe(views)
        batches.inc()
        decode.inc(decode_s)
        infer.inc(infer_s)

    def observe_answer(self, name: str, version: int, seconds: float) -> None:
        """Counts an image that was answered, from the response cache or by the model."""
        self._image_seconds_of(name, version, "ok").observe(seconds)
        # A time of day: it is shown to people.
        self._last_image_of(name, version).set(time.time())

    def observe_failure(self, name: str, version: int, seconds: float) -> None:
        """Counts an image that got an error, or whose client left."""
        self._image_seconds_of(name, version, "failed").observe(seconds)
