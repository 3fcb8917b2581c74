"""Prometheus metrics of what the images look like, and how far the answers are from validation."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge, Histogram

from service.drift import Measured

_PIXELS = (1e3, 1e4, 5e4, 1e5, 2.5e5, 5e5, 1e6, 2.5e6, 5e6, 1e7, 2.5e7, 5e7)
_TENTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class DriftMetrics:
    """The drift of every model. Part of `Metrics`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Makes the metrics in the registry of the others."""
        self._stability = Gauge(
            "fivecrop_drift_stability_index",
            "Population stability index of the latest thousand answers against validation.",
            ("model", "version", "of"),
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._embedding = Gauge(
            "fivecrop_drift_embedding_distance",
            "How far the mean embedding moved from validation's, in its standard deviations.",
            ("model", "version"),
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._pixels = Histogram(
            "fivecrop_image_pixels",
            "Width times height of one image in eight, of models that know validation.",
            ("model", "format"),
            buckets=_PIXELS,
            registry=registry,
        )
        self._brightness = Histogram(
            "fivecrop_image_brightness",
            "Mean of what the model sees of such an image, 0 to 1.",
            ("model",),
            buckets=_TENTHS,
            registry=registry,
        )

    def show(self, model: str, version: int, drift: Measured) -> None:
        """Shows how far the latest answers of a model are from validation."""
        labels = (model, str(version))
        self._stability.labels(*labels, "predictions").set(drift.predictions)
        self._stability.labels(*labels, "confidence").set(drift.confidence)
        if drift.embedding is not None:
            self._embedding.labels(*labels).set(drift.embedding)

    def observe_image(self, model: str, form: str, *, pixels: int, brightness: float) -> None:
        """Records what an image looks like; brightness from 0 to 1."""
        self._pixels.labels(model, form).observe(pixels)
        self._brightness.labels(model).observe(brightness)
