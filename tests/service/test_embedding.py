"""Embedding, batch and timings of an answer are the same over HTTP and gRPC."""

from __future__ import annotations

import httpx
import pytest

from service.classifier import Classifier
from service.http_api import build_http_app
from service.proto import image_classifier_pb2 as messages
from service.proto import image_classifier_pb2_grpc as stubs


@pytest.fixture
async def edges(tiny_bundle_repository, make_settings, metrics, serving_grpc):
    settings = make_settings(model_repository=tiny_bundle_repository)
    classifier = Classifier.build(settings, metrics)
    transport = httpx.ASGITransport(build_http_app(classifier, metrics, settings))
    async with (
        httpx.AsyncClient(transport=transport, base_url="http://fivecrop") as http,
        serving_grpc(classifier, metrics, settings) as serving,
    ):
        yield http, stubs.ImageClassifierStub(serving.channel)
    await classifier.close()


async def test_an_embedding_comes_over_both_when_asked_for(edges, make_png):
    http, grpc = edges
    image = make_png((40, 40), (200, 30, 90))
    answer = await http.post("/v1/classify?embedding=true", content=image)
    found = answer.json()["embedding"]
    assert len(found) == 64
    over_grpc = await grpc.Classify(messages.ClassifyRequest(image=image, embedding=True))
    assert list(over_grpc.embedding) == pytest.approx(found, abs=1e-6)
    for query in ("", "?embedding=false"):
        assert "embedding" not in (await http.post("/v1/classify" + query, content=image)).json()
    assert not (await grpc.Classify(messages.ClassifyRequest(image=image))).embedding
    bad = await http.post("/v1/classify?embedding=1", content=image)
    assert (bad.status_code, bad.json()["code"]) == (400, "invalid_argument")


async def test_every_answer_tells_its_version_its_batch_and_its_timings(edges, make_png):
    http, grpc = edges
    image = make_png((40, 40), (200, 30, 90))
    answer = await http.post("/v1/classify?tta=ten_crop", content=image)
    assert (answer.json()["version"], answer.json()["batch_views"]) == (1, 10)
    names = [part.split(";")[0].strip() for part in answer.headers["server-timing"].split(",")]
    assert names == ["decode", "queue", "infer", "total"]
    over_grpc = await grpc.Classify(messages.ClassifyRequest(image=image, tta="ten_crop"))
    assert (over_grpc.version, over_grpc.batch_views) == (1, 10)
    timings = over_grpc.timings
    assert 0 < timings.decode_ms + timings.queue_ms + timings.infer_ms <= timings.total_ms
