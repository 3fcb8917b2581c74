"""Prometheus metrics of one server: base units, bounded labels, made at start-up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Literal, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from service.capture_metrics import CaptureMetrics
from service.drift_metrics import DriftMetrics
from service.exemplars import Exemplars
from service.model_metrics import ModelMetrics
from service.traffic_metrics import Tally, TrafficMetrics, read_tally

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SCORES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
CacheResult = Literal["hit", "miss", "shared"]
# Of a version that is not served: it gives other answers than it was published with, its files are
# not what they should be, it does not run here, or does not fit.
LoadFailure = Literal["golden", "bundle", "provider", "memory", "other"]
_OTHER = "other"
_OPENMETRICS = "application/openmetrics-text"

# At the edges: too much is held there already. Before the queue: the client is over its rate, the
# queue is full, or the model's share of it, the answer would come too late, the server stops. In
# the queue: a more deserving job took the place, the deadline passed, nobody waits.
RejectReason = Literal[
    "intake_full",
    "rate_limited",
    "queue_full",
    "model_quota",
    "too_late",
    "draining",
    "displaced",
    "expired",
    "cancelled",
]


class Metrics:
    """What the server counts. One instance a process, handed down by the composition root."""

    def __init__(
        self,
        *,
        max_labels: int = 200,
        shared_folder: Path | None = None,
        collectors: Sequence[Collector] = (),
    ) -> None:
        """Makes the metrics.

        Args:
            max_labels: Class labels counted one by one; later ones are counted as `other`.
            shared_folder: Where several workers keep their values; `/metrics` of each then shows
                the sum. prometheus_client reads the same folder from its own environment variable.
            collectors: What is read at each scrape, the same whichever worker answers it.
        """
        self._shared_folder = shared_folder
        self._collectors = tuple(collectors)
        self._max_labels = max_labels
        self._labels: set[tuple[str, str, str]] = set()
        self._exemplars = Exemplars()
        # A series a counter that says when it was made; nobody asks for it.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            "fivecrop_requests",
            "Requests answered.",
            ("transport", "route", "code"),
            registry=registry,
        )
        self._request_seconds = Histogram(
            "fivecrop_request_seconds",
            "Time from the head of a request to its answer.",
            ("transport", "route"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._workers_alive = Gauge(
            "fivecrop_workers_alive",
            "Worker processes that serve.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._queue_views = Gauge(
            "fivecrop_queue_views",
            "Views admitted and not yet answered.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._inflight = Gauge(
            "fivecrop_inflight_requests",
            "Requests being answered.",
            ("transport",),
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._predictions = Counter(
            "fivecrop_predictions",
            "Images by the best class of their answer.",
            ("model", "version", "label"),
            registry=registry,
        )
        self._top1_score = Histogram(
            "fivecrop_top1_score",
            "Probability of the best class.",
            ("model",),
            buckets=_SCORES,
            registry=registry,
        )
        self._abstained = Counter(
            "fivecrop_abstained",
            "Images whose best score is under the model's threshold.",
            ("model", "version"),
            registry=registry,
        )
        self._cache_requests = Counter(
            "fivecrop_cache_requests",
            "Images by whether the response cache had their answer: hit, miss, or shared with a "
            "request that was already asking.",
            ("model", "version", "result"),
            registry=registry,
        )
        self._cache_seconds = Counter(
            "fivecrop_cache_seconds",
            "Time it took to look into the response cache.",
            ("model", "version", "result"),
            registry=registry,
        )
        self._cache_bytes = Gauge(
            "fivecrop_cache_bytes",
            "Size of the remembered answers.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.capture = CaptureMetrics(registry)
        self.drift = DriftMetrics(registry)
        self.models = ModelMetrics(registry, self._exemplars)
        self.traffic = TrafficMetrics(registry)
        self._model_info = Gauge(
            "fivecrop_model_info",
            "1 for each model that serves, 0 for one that did; what and where in the labels.",
            ("model", "version", "variant", "provider", "digest"),
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._rejected = Counter(
            "fivecrop_rejected",
            "Images that were admitted too late or not at all.",
            ("reason",),
            registry=registry,
        )
        # So that a rate over a reason that has not happened yet is 0, not nothing.
        for reason in get_args(RejectReason):
            self._rejected.labels(reason)
        self._cut_off = Counter(
            "fivecrop_connections_cut_off",
            "HTTP connections, and gRPC streams that nobody read, ended for what their client did "
            "or did not do.",
            ("reason",),
            registry=registry,
        )
        for reason in ("slow_request", "large_head", "slow_reader", "not_http"):
            self._cut_off.labels(reason)
        self._model_load_failures = Counter(
            "fivecrop_model_load_failures",
            "Bundles that were not served because they did not prove themselves.",
            ("model", "reason"),
            registry=registry,
        )
        # `labels()` takes a lock and makes a key of strings at each call; these are called for each
        # image, and their labels are bounded.
        self._requests_of = cache(self._requests.labels)
        self._request_seconds_of = cache(self._request_seconds.labels)
        self._inflight_of = cache(self._inflight.labels)
        self._predictions_of = cache(self._predictions.labels)
        self._top1_score_of = cache(self._top1_score.labels)

        self._repository_failures = Counter(
            "fivecrop_model_repository_failures",
            "Looks at the model repository that failed.",
            registry=registry,
        )

    def observe_request(
        self,
        *,
        transport: str,
        route: str,
        code: str,
        seconds: float,
        trace_id: str | None = None,
    ) -> None:
        """Counts an answered request; `route` is a template, `code` an error code or `ok`."""
        self._requests_of(transport, route, code).inc()
        self._request_seconds_of(transport, route).observe(seconds)
        if trace_id is not None:
            labels = {"transport": transport, "route": route}
            self._exemplars.note("fivecrop_request_seconds", labels, _SECONDS, seconds, trace_id)

    def track_inflight(self, transport: str) -> AbstractContextManager[None]:
        """Counts a request as being answered while the body runs."""
        return self._inflight_of(transport).track_inprogress()

    def count_worker(self) -> None:
        """Counts this process as a worker that serves, as long as it lives."""
        self._workers_alive.set(1)

    def set_queue_views(self, views: int) -> None:
        """Shows how many views are admitted and not yet answered."""
        self._queue_views.set(views)

    def count_rejected(self, reason: RejectReason) -> None:
        """Counts an image refused or dropped."""
        self._rejected.labels(reason).inc()

    def count_cut_off(self, reason: str) -> None:
        """Counts a connection closed: slow_request, large_head, slow_reader or not_http."""
        self._cut_off.labels(reason).inc()

    def observe_prediction(self, model: str, version: int, label: str, score: float) -> None:
        """Counts the best class of an answer."""
        key = (model, str(version), label)
        if key not in self._labels:
            if len(self._labels) >= self._max_labels:
                key = (model, str(version), _OTHER)
            else:
                self._labels.add(key)
        self._predictions_of(*key).inc()
        self._top1_score_of(model).observe(score)

    def count_abstained(self, model: str, version: int) -> None:
        """Counts an answer whose best class is under the model's threshold."""
        self._abstained.labels(model, str(version)).inc()

    def count_cache(self, model: str, version: int, result: CacheResult, seconds: float) -> None:
        """Counts an image by whether the cache had its answer, and the time to find out."""
        self._cache_requests.labels(model, version, result).inc()
        self._cache_seconds.labels(model, version, result).inc(seconds)

    def set_cache_bytes(self, size: int) -> None:
        """Shows how much the remembered answers take."""
        self._cache_bytes.set(size)

    def show_model(
        self, *, model: str, version: int, variant: str, provider: str, digest: str
    ) -> None:
        """Shows a model as serving."""
        self._model_info.labels(model, str(version), variant, provider, digest[:12]).set(1)

    def hide_model(
        self, *, model: str, version: int, variant: str, provider: str, digest: str
    ) -> None:
        """Shows a model as one that serves no more."""
        # Several workers share their series in files, which none of them can take one out of.
        self._model_info.labels(model, str(version), variant, provider, digest[:12]).set(0)
        self._labels = {key for key in self._labels if key[:2] != (model, str(version))}

    def count_repository_failure(self) -> None:
        """Counts a look at the repository that failed."""
        self._repository_failures.inc()

    def count_load_failure(self, model: str, reason: LoadFailure) -> None:
        """Counts a bundle that did not prove itself."""
        self._model_load_failures.labels(model, reason).inc()

    def read_samples(self) -> list[Sample]:
        """Returns the value of every series, of all workers when they share a folder.

        Reads files then: not for the event loop.
        """
        return [sample for family in self._collector().collect() for sample in family.samples]

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Returns the text for a scrape, of all workers when they share a folder, and its type.

        Args:
            accept: The `Accept` header. A scraper that takes OpenMetrics gets that, with
                exemplars; Prometheus does when it is set to store them.
        """
        registry = CollectorRegistry()
        for collector in self._collectors:
            registry.register(collector)
        registry.register(self._collector())
        if _OPENMETRICS in accept:
            families = _Families(self._exemplars.attach(registry.collect()))
            text = openmetrics.generate_latest(families)  # type: ignore[no-untyped-call]
            return text, openmetrics.CONTENT_TYPE_LATEST
        return generate_latest(registry), CONTENT_TYPE_LATEST

    def read_tally(self, model: str) -> Tally:
        """Returns what all workers counted of the trials of a model."""
        return read_tally(self._collector().collect(), model)

    def _collector(self) -> Collector:
        if self._shared_folder is None:
            return self._registry
        return MultiProcessCollector(None, path=str(self._shared_folder))  # type: ignore[no-untyped-call]


class _Families(Collector):
    """Metrics as they were collected once."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
