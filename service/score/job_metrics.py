"""Prometheus metrics of a job, on a port of its own: `--metrics-address`."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.score.errors import ScoreError
from service.score.progress import Progress
from service.score.storage import tell

Watch = Callable[[Progress], None]

_ADDRESS: Final = re.compile(r"\[?(?P<host>[^\]]+?)\]?:(?P<port>\d{1,5})")


class JobMetrics(Collector):
    """How far a job is, read when Prometheus asks, also while the job itself hangs."""

    def __init__(self) -> None:
        """Makes the metrics of a job that has done nothing yet."""
        # A time of day: what reads it compares it with its own.
        self._last_progress = time.time()
        self._progress: Progress | None = None

    def show(self, progress: Progress) -> None:
        """Takes note of progress."""
        self._progress, self._last_progress = progress, time.time()

    def collect(self) -> Iterator[Metric]:
        """Yields what a scrape shows."""
        images = CounterMetricFamily(
            "fivecrop_score_images",
            "Images of the job that are done, by status or error code.",
            labels=["code"],
        )
        progress = self._progress
        # A copy in one step: the job goes on counting meanwhile.
        for code, count in dict(progress.counts).items() if progress else ():
            images.add_metric([code], count)
        yield images
        expected = GaugeMetricFamily(
            "fivecrop_score_images_expected", "Images of the job, once that is known.", labels=[]
        )
        if progress is not None and progress.total is not None:
            expected.add_metric([], progress.total)
        yield expected
        yield GaugeMetricFamily(
            "fivecrop_score_last_progress_timestamp_seconds",
            "When the job last had an image done, or began.",
            self._last_progress,
        )


@contextmanager
def serve_metrics(address: str | None, watch: Watch) -> Iterator[Watch]:
    """Gives what progress is told to: `watch`, and `GET /metrics` of HOST:PORT while the body runs.

    Raises:
        ScoreError: It is no address, or nothing can listen there.
    """
    if address is None:
        yield watch
        return
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise ScoreError(f"--metrics-address {address!r} is not HOST:PORT")
    metrics, registry = JobMetrics(), CollectorRegistry()
    registry.register(metrics)
    try:
        server, thread = start_http_server(int(found["port"]), found["host"], registry)
    except (OSError, OverflowError) as error:
        raise ScoreError(f"--metrics-address: cannot listen on {address}: {tell(error)}") from error

    def show(progress: Progress) -> None:
        metrics.show(progress)
        watch(progress)

    try:
        yield show
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
