"""Prometheus metrics of what is kept of the answered images."""

from __future__ import annotations

from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge

# On the disk; no room in the queue of the writer; an error of the disk; of a form or size that is
# not kept.
CaptureResult = Literal["written", "dropped", "failed", "skipped"]


class CaptureMetrics:
    """What became of the images that were to be kept. Part of `Metrics`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Makes the metrics in the registry of the others."""
        self._images = Counter(
            "fivecrop_capture_images",
            "Images that were to be kept for training, by what became of them.",
            ("result",),
            registry=registry,
        )
        for result in get_args(CaptureResult):
            self._images.labels(result)
        self._bytes = Gauge(
            "fivecrop_capture_bytes",
            "Size of the part files with images for training.",
            registry=registry,
            multiprocess_mode="mostrecent",
        )

    def count(self, result: CaptureResult, images: int = 1) -> None:
        """Counts images by what became of them."""
        self._images.labels(result).inc(images)

    def show_size(self, size: int) -> None:
        """Shows how large all part files are together, in bytes."""
        self._bytes.set(size)
