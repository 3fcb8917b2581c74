"""The statistics extension: every leaf is what the images and batches of the model really took."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest

from service.classifier import Options
from service.errors import RequestError
from service.http_api import build_http_app
from service.proto import open_inference_pb2 as messages
from service.proto.open_inference_pb2_grpc import GRPCInferenceServiceStub

RED, BLUE = (255, 0, 0), (0, 0, 255)
STAGES = ("queue", "compute_input", "compute_infer", "compute_output")


@pytest.fixture
async def observed(make_tiny_model, make_settings, metrics):
    """Returns `observed(**settings)`: a tiny model, and a function that reads its statistics."""
    clients = []

    async def observed(**given):
        settings = make_settings(**given)
        tiny = make_tiny_model(settings)
        transport = httpx.ASGITransport(build_http_app(tiny.classifier, metrics, settings))
        client = httpx.AsyncClient(transport=transport, base_url="http://fivecrop")
        clients.append(client)

        async def read(path="/v2/models/tiny/stats"):
            answer = await client.get(path)
            assert answer.status_code == 200, answer.text
            (model,) = answer.json()["model_stats"]
            return model

        return tiny, read

    yield observed
    for client in clients:
        await client.aclose()


async def test_a_model_that_was_never_asked_has_every_leaf_at_zero(observed):
    _, read = await observed()
    told = await read()
    assert (told["name"], told["version"]) == ("tiny", "1")
    assert told["last_inference"] == told["inference_count"] == told["execution_count"] == 0
    leaves = {"success", "fail", "cache_hit", "cache_miss", *STAGES}
    assert told["inference_stats"] == {leaf: {"count": 0, "ns": 0} for leaf in leaves}
    assert (told["batch_stats"], told["response_stats"]) == ([], {})
    assert [one["type"] for one in told["memory_usage"]] == ["CPU"]


async def test_answers_and_errors_are_counted_with_their_time(observed, make_png):
    tiny, read = await observed()
    started = time.time()
    images = [make_png((8, 8), RED), make_png((64, 64), BLUE)]
    results = [await tiny.classifier.classify(image, Options()) for image in images]
    for bad in (b"no image", images[0][:40]):
        with pytest.raises(RequestError):
            await tiny.classifier.classify(bad, Options())
    told = await read()
    stats = told["inference_stats"]
    assert told["inference_count"] == told["execution_count"] == 2
    assert stats["fail"]["count"] == 2
    assert stats["fail"]["ns"] > 0
    assert stats["success"]["count"] == 2
    total_s = sum(result.timings.total_s for result in results)
    assert stats["success"]["ns"] == pytest.approx(total_s * 1e9, rel=0.5)
    for ours, stage in (
        ("compute_input", "decode"),
        ("queue", "queue"),
        ("compute_infer", "infer"),
    ):
        expected_s = sum(getattr(result.timings, f"{stage}_s") for result in results)
        assert stats[ours]["count"] == 2
        assert stats[ours]["ns"] == pytest.approx(expected_s * 1e9, abs=2)
    assert sum(stats[stage]["ns"] for stage in STAGES) <= stats["success"]["ns"]
    assert started * 1000 <= told["last_inference"] + 1 <= time.time() * 1000 + 1


async def test_batches_are_counted_by_their_size(observed, make_png):
    tiny, read = await observed()
    image = make_png((8, 8), RED)
    tiny.gate.clear()
    first = [
        asyncio.ensure_future(tiny.classifier.classify(image, Options(tta=tta)))
        for tta in ("none", "none", "five_crop", "ten_crop")
    ]
    while tiny.waiting < 2:
        await asyncio.sleep(0.005)
    tiny.gate.set()
    await asyncio.gather(*first)
    told = await read()
    sizes = {one["batch_size"]: one for one in told["batch_stats"]}
    assert sum(size * one["compute_infer"]["count"] for size, one in sizes.items()) == 17
    assert {size: one["compute_infer"]["count"] for size, one in sizes.items()} == {
        size: tiny.batches.count(size) for size in set(tiny.batches)
    }
    assert told["execution_count"] == len(tiny.batches)
    assert told["inference_count"] == 4
    for one in sizes.values():
        counts = {one[leaf]["count"] for leaf in STAGES if leaf in one}
        assert len(counts) == 1
        assert all(one[leaf]["ns"] > 0 for leaf in STAGES if leaf in one)


async def test_what_the_cache_answers_is_a_success_without_an_execution(observed, make_png):
    tiny, read = await observed(response_cache_bytes=1_000_000)
    image = make_png((8, 8), RED)
    for _ in range(3):
        await tiny.classifier.classify(image, Options())
    told = await read()
    stats = told["inference_stats"]
    assert [stats[leaf]["count"] for leaf in ("success", "cache_miss", "cache_hit")] == [3, 1, 2]
    assert stats["compute_infer"]["count"] == told["inference_count"] == 1
    assert stats["cache_hit"]["ns"] > 0


async def test_paths_and_rpc_tell_the_same(
    make_tiny_model, make_settings, metrics, make_png, serving_grpc
):
    settings = make_settings()
    tiny = make_tiny_model(settings)
    await tiny.classifier.classify(make_png((8, 8), RED), Options())
    transport = httpx.ASGITransport(build_http_app(tiny.classifier, metrics, settings))
    async with (
        httpx.AsyncClient(transport=transport, base_url="http://fivecrop") as client,
        serving_grpc(tiny.classifier, metrics, settings) as served,
    ):
        paths = ("/v2/models/stats", "/v2/models/tiny/stats", "/v2/models/tiny/versions/1/stats")
        documents = [(await client.get(path)).json() for path in paths]
        assert documents[0] == documents[1] == documents[2]
        (told,) = documents[0]["model_stats"]
        for path in ("/v2/models/other/stats", "/v2/models/tiny/versions/2/stats"):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()["code"]) == (404, "model_not_found")
        stub = GRPCInferenceServiceStub(served.channel)
        for asked in ({}, {"name": "tiny"}, {"name": "tiny", "version": "1"}):
            request = messages.ModelStatisticsRequest(**asked)
            (model,) = (await stub.ModelStatistics(request)).model_stats
            assert model.inference_stats.success.ns == told["inference_stats"]["success"]["ns"]
            assert (
                model.batch_stats[0].compute_infer.ns
                == (told["batch_stats"][0]["compute_infer"]["ns"])
            )
            assert model.last_inference == told["last_inference"]
        extensions = (await client.get("/v2")).json()["extensions"]
        assert "statistics" in extensions
