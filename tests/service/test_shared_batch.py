"""A request over HTTP, with two views, shares its batch with one over gRPC."""

from __future__ import annotations

import asyncio

import httpx

from service.http_api import build_http_app
from service.proto.image_classifier_pb2 import ClassifyRequest
from service.proto.image_classifier_pb2_grpc import ImageClassifierStub

PATIENCE_S = 20


async def test_requests_of_both_protocols_are_one_batch(
    make_tiny_model, make_settings, metrics, make_png, serving_grpc
):
    settings = make_settings()
    # Each alone would wait for a minute for another.
    model = make_tiny_model(settings, together=3)
    app = build_http_app(model.classifier, metrics, settings)
    image = make_png((8, 8), (255, 0, 0))
    async with (
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://fivecrop") as http,
        serving_grpc(model.classifier, metrics, settings) as served,
    ):
        stub = ImageClassifierStub(served.channel)
        over_http, over_grpc = await asyncio.wait_for(
            asyncio.gather(
                http.post("/v1/classify", content=image, params={"tta": "hflip"}),
                stub.Classify(ClassifyRequest(image=image)),
            ),
            PATIENCE_S,
        )
    assert model.batches == [3]
    assert over_http.json()["batch_views"] == over_grpc.batch_views == 3
    assert over_http.json()["predictions"][0]["label"] == over_grpc.predictions[0].label == "red"
