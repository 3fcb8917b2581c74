"""Traces: what a collector gets to see of a request, and what it costs when there is none."""

from __future__ import annotations

import asyncio
import itertools
from types import SimpleNamespace

import grpc
import httpx
import pytest
from bad_requests import JPEG
from otlp_collector import OtlpCollector
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from service.http_api import build_http_app
from service.proto import image_classifier_pb2 as messages
from service.proto.image_classifier_pb2_grpc import ImageClassifierStub
from service.tracing import Tracing

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = f"00-{TRACE}-{PARENT}-01"
UNSAMPLED = f"00-{TRACE}-{PARENT}-00"
STAGES = ["queue", "decode", "queue", "infer", "postprocess"]
OPENMETRICS = {"accept": "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;q=0.4"}


@pytest.fixture
def collector():
    with OtlpCollector() as collector:
        yield collector


@pytest.fixture
async def traced(collector, make_tiny_model, metrics, make_settings, serving_grpc):
    """Both edges over one tiny model, traced; `spans()` are those that the collector got."""
    tracing = Tracing.to_collector(collector.endpoint, sample_ratio=1.0)
    settings = make_settings()
    model = make_tiny_model(settings, tracing=tracing)
    app = build_http_app(model.classifier, metrics, settings, tracing=tracing)
    serving = serving_grpc(model.classifier, metrics, settings, tracing=tracing)
    transport = httpx.ASGITransport(app)
    client = httpx.AsyncClient(transport=transport, base_url="http://fivecrop")

    def spans():
        tracing._provider.force_flush()
        return collector.spans

    async with client, serving as served:
        stub = ImageClassifierStub(served.channel)
        yield SimpleNamespace(http=client, grpc=stub, spans=spans, model=model)
    tracing.close()


def attributes(span):
    return {one.key: one.value.string_value or one.value.int_value for one in span.attributes}


def check_tree(spans, *, images=1):
    """One request's spans hang together and lie within each other; returns the request's."""
    (root,) = [span for span in spans if span.kind == span.SPAN_KIND_SERVER]
    classified = [span for span in spans if span.parent_span_id == root.span_id]
    assert [span.name for span in classified] == ["classify"] * images
    for image in classified:
        stages = [span for span in spans if span.parent_span_id == image.span_id]
        stages.sort(key=lambda span: (span.start_time_unix_nano, span.end_time_unix_nano))
        assert [span.name for span in stages] == STAGES
        edges = [edge for s in stages for edge in (s.start_time_unix_nano, s.end_time_unix_nano)]
        # A microsecond is what a time of day in floating point is good for.
        assert all(early <= late + 1000 for early, late in itertools.pairwise(edges))
        assert root.start_time_unix_nano <= edges[0] + 1_000_000
        assert edges[-1] <= root.end_time_unix_nano + 1_000_000
        assert attributes(image)["fivecrop.model"] == "tiny"
    assert len(spans) == 1 + images * (1 + len(STAGES))
    assert {span.trace_id for span in spans} == {root.trace_id}
    return root


async def test_request_over_http_continues_its_clients_trace(traced, collector):
    headers = {"traceparent": SAMPLED, "tracestate": "vendor=1", "x-request-id": "mine"}
    assert (await traced.http.post("/v1/classify", content=JPEG, headers=headers)).is_success
    root = check_tree(traced.spans())
    assert root.trace_id.hex() == TRACE
    assert root.parent_span_id.hex() == PARENT
    assert root.trace_state == "vendor=1"
    assert root.name == "POST /v1/classify"
    assert attributes(root) == {
        "http.request.method": "POST",
        "http.route": "/v1/classify",
        "http.response.status_code": 200,
        "fivecrop.code": "ok",
        "fivecrop.request_id": "mine",
    }
    assert collector.resources[0]["service.name"] == "fivecrop"


async def test_call_over_grpc_continues_its_clients_trace(traced):
    await traced.grpc.Classify(
        messages.ClassifyRequest(image=JPEG), metadata=(("traceparent", SAMPLED),)
    )
    root = check_tree(traced.spans())
    assert root.trace_id.hex() == TRACE
    assert root.parent_span_id.hex() == PARENT
    assert root.name == "fivecrop.v1.ImageClassifier/Classify"
    assert attributes(root)["rpc.method"] == "Classify"


async def test_images_of_one_request_are_told_apart(traced):
    await traced.http.post("/v1/classify", files=[("image", JPEG)] * 3)
    check_tree(traced.spans(), images=3)


async def test_each_item_of_a_stream_is_a_span_of_its_own(traced):
    request = messages.ClassifyStreamRequest(request=messages.ClassifyRequest(image=JPEG))
    call = traced.grpc.ClassifyStream(iter([request] * 3), metadata=(("traceparent", SAMPLED),))
    assert len([answer async for answer in call]) == 3
    roots = [span for span in traced.spans() if span.kind == span.SPAN_KIND_SERVER]
    assert {(root.trace_id.hex(), root.parent_span_id.hex()) for root in roots} == {(TRACE, PARENT)}
    assert len(roots) == 3


@pytest.mark.parametrize(
    "garbage",
    ["", "00", "00-0-0-01", f"00-{TRACE}-{PARENT}", f"ff-{TRACE}-{PARENT}-01", "\xff", "x" * 5000],
)
async def test_garbage_instead_of_a_trace_begins_a_new_one(traced, garbage):
    headers = [(b"traceparent", garbage.encode("latin-1"))]
    assert (await traced.http.post("/v1/classify", content=JPEG, headers=headers)).is_success
    root = check_tree(traced.spans())
    assert root.trace_id.hex() != TRACE
    assert root.parent_span_id == b""


async def test_client_that_does_not_sample_is_not_traced(traced):
    await traced.http.post("/v1/classify", content=JPEG, headers={"traceparent": UNSAMPLED})
    await traced.grpc.Classify(
        messages.ClassifyRequest(image=JPEG), metadata=(("traceparent", UNSAMPLED),)
    )
    assert traced.spans() == []
    assert "trace_id" not in (await traced.http.get("/metrics", headers=OPENMETRICS)).text


async def test_probes_and_scrapes_are_not_traced(traced):
    for path in ("/livez", "/readyz", "/metrics", "/v1/models", "/nothing"):
        await traced.http.get(path)
    assert traced.spans() == []


async def test_refused_request_is_a_span_that_says_why(traced):
    await traced.http.post("/v1/classify", content=b"hello")
    with pytest.raises(grpc.aio.AioRpcError):
        await traced.grpc.Classify(messages.ClassifyRequest(image=b"hello"))
    over_http, over_grpc = traced.spans()
    assert attributes(over_http)["fivecrop.code"] == "unsupported_media"
    assert attributes(over_grpc)["fivecrop.code"] == "unsupported_media"
    # The client's fault is no fault of the server (OpenTelemetry's conventions).
    assert over_http.status.code == over_grpc.status.code == over_http.status.STATUS_CODE_UNSET


async def test_fault_of_the_server_is_a_failed_span(traced, monkeypatch):
    monkeypatch.setattr(traced.model.classifier, "_conclude", lambda *_: 1 / 0)
    await traced.http.post("/v1/classify", content=JPEG)
    with pytest.raises(grpc.aio.AioRpcError):
        await traced.grpc.Classify(messages.ClassifyRequest(image=JPEG))
    for span in traced.spans():
        assert span.status.code == span.status.STATUS_CODE_ERROR
        assert attributes(span)["fivecrop.code"] == "internal"


async def test_concurrent_requests_stay_in_their_own_traces(traced):
    parents = [f"{index:016x}" for index in range(1, 9)]
    await asyncio.gather(
        *(
            traced.http.post(
                "/v1/classify",
                content=JPEG,
                headers={"traceparent": f"00-{int(parent, 16):032x}-{parent}-01"},
            )
            for parent in parents
        )
    )
    by_trace = {}
    for span in traced.spans():
        by_trace.setdefault(span.trace_id.hex(), []).append(span)
    assert sorted(by_trace) == [parent.zfill(32) for parent in parents]
    for spans in by_trace.values():
        check_tree(spans)


async def test_collector_that_is_away_disturbs_nobody(
    make_tiny_model, metrics, make_settings, free_port, caplog
):
    tracing = Tracing.to_collector(f"http://127.0.0.1:{free_port()}", sample_ratio=1.0)
    settings = make_settings()
    model = make_tiny_model(settings, tracing=tracing)
    app = build_http_app(model.classifier, metrics, settings, tracing=tracing)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://fivecrop"
    ) as client:
        assert (await client.post("/v1/classify", content=JPEG)).is_success
    tracing.close()


async def test_ratio_of_zero_follows_only_the_clients_that_sample(
    collector, make_tiny_model, metrics, make_settings
):
    tracing = Tracing.to_collector(f"{collector.endpoint}/v1/traces", sample_ratio=0.0)
    settings = make_settings()
    model = make_tiny_model(settings, tracing=tracing)
    app = build_http_app(model.classifier, metrics, settings, tracing=tracing)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://fivecrop"
    ) as client:
        await client.post("/v1/classify", content=JPEG)
        await client.post("/v1/classify", content=JPEG, headers={"traceparent": SAMPLED})
        await client.post("/v1/classify", content=JPEG, headers={"traceparent": "garbage"})
    tracing.close()
    assert check_tree(collector.spans).trace_id.hex() == TRACE


def test_a_ratio_is_about_that_share_of_the_traces(collector):
    tracing = Tracing.to_collector(collector.endpoint, sample_ratio=0.3)
    ids = []
    for _ in range(2000):
        if (span := tracing.begin({})) is not None:
            with span as told:
                assert told.trace_id == tracing.current_trace_id()
                ids.append(told.trace_id)
        assert tracing.current_trace_id() is None
    tracing.close()
    assert 450 < len(ids) < 750
    assert len(set(ids)) == len(ids)


# ---- exemplars ----


def read_exemplars(text, name):
    """Labels and trace of each bucket of the histogram that has an exemplar."""
    return [
        (sample.labels, sample.exemplar)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"{name}_bucket" and sample.exemplar
    ]


async def test_histograms_point_at_the_trace_of_their_latest_request(traced):
    await traced.http.post("/v1/classify", content=JPEG, headers={"traceparent": SAMPLED})
    response = await traced.http.get("/metrics", headers=OPENMETRICS)
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    ((labels, exemplar),) = read_exemplars(response.text, "fivecrop_request_seconds")
    assert labels["transport"] == "http"
    assert exemplar.labels == {"trace_id": TRACE}
    assert exemplar.value <= float(labels["le"])
    stages = {
        labels["stage"] for labels, _ in read_exemplars(response.text, "fivecrop_stage_seconds")
    }
    assert stages == {"queue", "decode", "infer", "postprocess"}


async def test_plain_text_has_no_exemplars_because_it_cannot(traced):
    await traced.http.post("/v1/classify", content=JPEG)
    response = await traced.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    assert TRACE not in response.text
    assert "# EOF" not in response.text
