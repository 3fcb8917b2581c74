"""OpenTelemetry traces: one span a request, and below it one an image with its stages.

Only imported when traces are asked for, so that a server without them pays a comparison with None.
The stages become spans after the fact, from the times that the answer carries anyway: nothing is
added to what the threads do.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Final

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

# For the last spans of a server that ends; one whose collector is away must end in time too.
_CLOSE_S: Final = 3.0
Attributes = Mapping[str, str | int]


@dataclass(slots=True, kw_only=True)
class RequestTrace:
    """The trace that a request belongs to, and what its span is to say at the end.

    Attributes:
        trace_id: 32 hexadecimal digits.
        name: Of the span.
        attributes: Of the span.
        is_failed: Whether the server, not the client, is to blame for the outcome.
    """

    trace_id: str
    name: str = ""
    attributes: dict[str, str | int] = field(default_factory=dict)
    is_failed: bool = False


class Tracing:
    """Makes spans and sends them, in batches and on a thread of its own, to a collector."""

    def __init__(self, exporter: SpanExporter, *, sample_ratio: float) -> None:
        """Makes a tracer.

        Args:
            exporter: Where spans go.
            sample_ratio: Share of the traces begun here; a client's own decision is followed.
        """
        resource = Resource.create({"service.name": "fivecrop"})
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,  # `begin` has sampled
            # What an operator says in OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES comes last.
            resource=resource.merge(OTELResourceDetector().detect()),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("fivecrop")
        self._propagator = TraceContextTextMapPropagator()
        self._sample_ratio = sample_ratio

    @classmethod
    def to_collector(cls, endpoint: str, *, sample_ratio: float) -> Tracing:
        """Returns a tracer that sends OTLP over HTTP to `endpoint`, as `http://host:4318`."""
        url = endpoint.rstrip("/")
        if not url.endswith("/v1/traces"):
            url += "/v1/traces"
        return cls(OTLPSpanExporter(endpoint=url), sample_ratio=sample_ratio)

    def begin(self, headers: Mapping[str, str]) -> AbstractContextManager[RequestTrace] | None:
        """Returns a context that makes its work part of the trace that the W3C headers name.

        Or of a new one. None is returned for a request that is not sampled: a span that is not
        recorded would cost nearly as much as one that is.
        """
        parent = self._propagator.extract(headers, context=contexts.Context())
        asked = trace.get_current_span(parent).get_span_context()
        is_sampled = (
            asked.trace_flags.sampled if asked.is_valid else random.random() < self._sample_ratio
        )
        return self._record(parent) if is_sampled else None

    @contextmanager
    def _record(self, parent: contexts.Context) -> Iterator[RequestTrace]:
        span = self._tracer.start_span("request", parent, kind=trace.SpanKind.SERVER)
        identity = span.get_span_context()
        told = RequestTrace(trace_id=f"{identity.trace_id:032x}")
        token = contexts.attach(trace.set_span_in_context(span, parent))
        try:
            yield told
        finally:
            contexts.detach(token)
            span.update_name(told.name)
            span.set_attributes(told.attributes)
            if told.is_failed:
                span.set_status(trace.StatusCode.ERROR)
            span.end()

    @staticmethod
    def current_trace_id() -> str | None:
        """Returns the id of the trace that this task works for, or None when it is not sampled."""
        identity = trace.get_current_span().get_span_context()
        return f"{identity.trace_id:032x}" if identity.trace_flags.sampled else None

    def record_image(
        self, stages: Sequence[tuple[str, float, float]], attributes: Attributes
    ) -> None:
        """Adds, to a trace that is sampled, the span of an image and below it those of its stages.

        Args:
            stages: Name, start and end of each in order, on `time.monotonic`'s clock.
            attributes: Of the image's span.
        """
        parent = trace.get_current_span()
        offset_s = time.time() - time.monotonic()
        (_, start, _), (_, _, end) = stages[0], stages[-1]
        image = self._tracer.start_span(
            "classify",
            trace.set_span_in_context(parent),
            attributes=attributes,
            start_time=_to_ns(start + offset_s),
        )
        below = trace.set_span_in_context(image)
        for name, began, ended in stages:
            span = self._tracer.start_span(name, below, start_time=_to_ns(began + offset_s))
            span.end(_to_ns(ended + offset_s))
        image.end(_to_ns(end + offset_s))

    def close(self) -> None:
        """Sends what is left, for a few seconds at most."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(_CLOSE_S)


def _to_ns(seconds: float) -> int:
    return int(seconds * 1_000_000_000)
