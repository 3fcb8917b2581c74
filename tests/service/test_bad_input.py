"""Bad input gets one stable code, the same over HTTP and gRPC, and disturbs nothing beside it.

Only the model is a toy; edges, limits, decoders, queue and threads are the real ones.
"""

from __future__ import annotations

import asyncio
import base64
from types import SimpleNamespace

import grpc
import httpx
import pytest
from bad_requests import FILES, JPEG, OPTIONS, black_png, encode
from PIL import Image

from service.errors import ErrorCode
from service.grpc_api import STATUS as GRPC_STATUS
from service.http_api import STATUS as HTTP_STATUS
from service.http_api import build_http_app
from service.proto import image_classifier_pb2 as messages
from service.proto import rpc_status_pb2
from service.proto.image_classifier_pb2_grpc import ImageClassifierStub

PATIENCE_S = 60  # for what takes milliseconds on a machine with nothing else to do


@pytest.fixture
def make_edges(make_tiny_model, metrics, make_settings, serving_grpc):
    """Returns a function from settings to both edges over one tiny model."""

    def make(**given):
        settings = make_settings(**given)
        model = make_tiny_model(settings)
        app = build_http_app(model.classifier, metrics, settings)
        transport = httpx.ASGITransport(app)
        edges = SimpleNamespace(model=model, metrics=metrics)
        edges.http = httpx.AsyncClient(
            transport=transport, base_url="http://fivecrop", timeout=PATIENCE_S
        )
        edges.serving_grpc = serving_grpc(model.classifier, metrics, settings)
        return edges

    return make


@pytest.fixture
async def edges(make_edges):
    """Both edges with the default settings."""
    edges = make_edges()
    async with edges.http, edges.serving_grpc as served:
        edges.grpc = ImageClassifierStub(served.channel)
        yield edges


async def ask_http(edges, image, options=None, **request):
    """Returns "ok" or the code that HTTP answers, having checked the status that goes with it."""
    request = request or {"content": image}
    response = await edges.http.post("/v1/classify", params=options or {}, **request)
    return read_http_code(response)


def read_http_code(response):
    if response.status_code == 200:
        return "ok"
    code = response.json()["code"]
    assert response.status_code == HTTP_STATUS[ErrorCode(code)]
    return code


async def ask_grpc(edges, image, options=None, **call):
    """Returns "ok" or the code that gRPC answers, having checked the status that goes with it."""
    request = messages.ClassifyRequest(image=image, **(options or {}))
    try:
        await edges.grpc.Classify(request, timeout=PATIENCE_S, **call)
    except grpc.aio.AioRpcError as error:
        return read_grpc_code(error)
    return "ok"


def read_grpc_code(error):
    details = dict(error.trailing_metadata())["grpc-status-details-bin"]
    packed = rpc_status_pb2.Status.FromString(details).details[0]
    code = rpc_status_pb2.ErrorInfo.FromString(packed.value).reason
    assert error.code() is GRPC_STATUS[ErrorCode(code)]
    return code


@pytest.mark.parametrize("name", FILES)
async def test_a_bad_file_gets_its_code_over_both_transports_and_disturbs_no_other(edges, name):
    image, code = FILES[name]
    results = await asyncio.wait_for(
        asyncio.gather(
            ask_http(edges, image),
            ask_grpc(edges, image),
            *(ask(edges, JPEG) for ask in (ask_http, ask_grpc) for _ in range(3)),
        ),
        PATIENCE_S,
    )
    assert results == [code, code] + ["ok"] * 6


@pytest.mark.parametrize("name", OPTIONS)
async def test_a_bad_option_gets_its_code_over_both_transports(edges, name):
    options, code = OPTIONS[name]
    assert await ask_http(edges, JPEG, options) == code
    assert await ask_grpc(edges, JPEG, options) == code
    assert not edges.model.batches


@pytest.mark.parametrize("name", FILES)
async def test_a_bad_file_gets_its_code_in_a_form_in_json_and_in_a_stream(edges, name):
    image, code = FILES[name]
    encoded = [base64.b64encode(one).decode() for one in (JPEG, image, JPEG)]
    form = await edges.http.post(
        "/v1/classify", files=[("image", one) for one in (JPEG, image, JPEG)]
    )
    listed = await edges.http.post("/v1/classify", json={"images": encoded})
    for response in (form, listed):
        first, second, third = response.json()["results"]
        assert second["error"]["code"] == code
        assert second["status"] == HTTP_STATUS[ErrorCode(code)]
        assert first["status"] == third["status"] == 200
    stream = edges.grpc.ClassifyStream(
        iter(
            [
                messages.ClassifyStreamRequest(id=str(i), request=messages.ClassifyRequest(image=b))
                for i, b in enumerate((JPEG, image, JPEG))
            ]
        )
    )
    outcomes = {answer.id: answer async for answer in stream}
    assert outcomes["1"].error.code == code
    assert outcomes["0"].HasField("response")
    assert outcomes["2"].HasField("response")


async def test_images_of_one_request_share_what_decoding_may_cost(make_edges):
    """Else an upload costs as much as the worst image, as often as a request may hold images."""
    edges = make_edges(max_request_decode_s=0.0012)  # one of these is 0.0005
    async with edges.http:
        files = [("image", one) for one in (JPEG, JPEG, JPEG, JPEG, b"hello")]
        answer = await edges.http.post("/v1/classify", files=files)
        told = [one.get("error", {}).get("code") for one in answer.json()["results"]]
        assert told == [None, None, "image_too_complex", "image_too_complex", "unsupported_media"]
    edges = make_edges(max_request_decode_s=1e-9)
    async with edges.http:
        assert await ask_http(edges, JPEG) == "ok"  # one image has limits of its own
        files = [("image", JPEG)] * 2
        first, second = (await edges.http.post("/v1/classify", files=files)).json()["results"]
        assert (first["status"], second["status"]) == (200, 422)


async def test_a_billion_predictions_are_all_there_are(edges):
    response = await edges.http.post("/v1/classify", params={"top_k": 10**9}, content=JPEG)
    labels = [one["label"] for one in response.json()["predictions"]]
    assert sorted(labels) == ["blue", "green", "red"]
    answer = await edges.grpc.Classify(messages.ClassifyRequest(image=JPEG, top_k=10**9))
    assert [one.label for one in answer.predictions] == labels


async def test_both_transports_give_the_same_answer(edges):
    over_http = (await edges.http.put("/v1/classify", content=JPEG)).json()
    over_grpc = await edges.grpc.Classify(messages.ClassifyRequest(image=JPEG))
    assert over_http["predictions"] == [
        {"label": one.label, "index": one.index, "score": one.score}
        for one in over_grpc.predictions
    ]
    assert over_http["image"] == {"width": 64, "height": 48, "format": "jpeg"}


@pytest.mark.parametrize("timeout_ms", ["0", "-1", "-0.5"])
async def test_a_deadline_that_has_passed_is_an_answer_and_no_work(edges, timeout_ms):
    response = await edges.http.post(
        "/v1/classify", content=JPEG, headers={"x-request-timeout-ms": timeout_ms}
    )
    assert read_http_code(response) == "deadline_exceeded"
    request = messages.ClassifyStreamRequest(
        request=messages.ClassifyRequest(image=JPEG), timeout_ms=float(timeout_ms)
    )
    answers = [answer async for answer in edges.grpc.ClassifyStream(iter([request]))]
    assert [answer.error.code for answer in answers] == ["deadline_exceeded"]
    assert not edges.model.batches


@pytest.mark.parametrize("timeout_ms", [float("nan"), float("inf"), 1e300])
async def test_a_deadline_that_is_no_time_is_refused_or_shortened(edges, timeout_ms):
    request = messages.ClassifyStreamRequest(
        request=messages.ClassifyRequest(image=JPEG), timeout_ms=timeout_ms
    )
    answers = [answer async for answer in edges.grpc.ClassifyStream(iter([request]))]
    expected = "invalid_argument" if timeout_ms != timeout_ms else ""
    assert [answer.error.code for answer in answers] == [expected]


async def block(edges):
    """Makes both threads of the tiny model wait with a batch each; returns their requests."""
    edges.model.gate.clear()
    blocked = [asyncio.create_task(ask_http(edges, JPEG)) for _ in range(2)]
    async with asyncio.timeout(PATIENCE_S):
        while edges.model.waiting < 2:
            await asyncio.sleep(0.005)
    return blocked


async def wait_for_metric(edges, text):
    async with asyncio.timeout(PATIENCE_S):
        while text not in edges.metrics.render()[0].decode():
            await asyncio.sleep(0.01)


async def test_an_image_whose_deadline_passes_in_the_queue_is_never_computed(edges):
    blocked = await block(edges)
    response = await edges.http.post(
        "/v1/classify", content=JPEG, headers={"x-request-timeout-ms": "50"}
    )
    assert read_http_code(response) == "deadline_exceeded"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await edges.grpc.Classify(messages.ClassifyRequest(image=JPEG), timeout=0.05)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    edges.model.gate.set()
    assert await asyncio.gather(*blocked) == ["ok", "ok"]
    assert await ask_http(edges, JPEG) == "ok"
    assert sum(edges.model.batches) == 3


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/explain"])
async def test_the_deadline_runs_while_the_body_is_sent(edges, path):
    async def send_slowly():
        yield JPEG[:100]
        await asyncio.sleep(0.3)
        yield JPEG[100:]

    headers = {"x-request-timeout-ms": "200"}
    response = await edges.http.post(path, content=send_slowly(), headers=headers)
    assert read_http_code(response) == "deadline_exceeded"
    assert edges.model.batches == []


async def test_a_cancelled_call_is_never_computed_and_its_neighbours_are(edges):
    blocked = await block(edges)
    neighbours = [asyncio.create_task(ask(edges, JPEG)) for ask in (ask_http, ask_grpc)]
    call = edges.grpc.Classify(messages.ClassifyRequest(image=JPEG))
    await wait_for_metric(edges, "fivecrop_queue_views 5.0")
    call.cancel()
    await wait_for_metric(edges, 'fivecrop_requests_total{code="cancelled"')
    edges.model.gate.set()
    assert await asyncio.gather(*blocked, *neighbours) == ["ok"] * 4
    assert sum(edges.model.batches) == 4
    assert 'fivecrop_rejected_total{reason="cancelled"} 1.0' in edges.metrics.render()[0].decode()


async def test_calls_that_are_opened_and_reset_leave_nothing_behind(make_edges):
    # A queue that kept what was reset (CVE-2023-44487 against HTTP/2 at large) would be full.
    edges = make_edges(max_queue_views=60)
    async with edges.http, edges.serving_grpc as served:
        edges.grpc = ImageClassifierStub(served.channel)
        blocked = await block(edges)
        for _ in range(10):
            calls = [edges.grpc.Classify(messages.ClassifyRequest(image=JPEG)) for _ in range(100)]
            async with asyncio.timeout(PATIENCE_S):
                while "fivecrop_queue_views 2.0" in edges.metrics.render()[0].decode():
                    await asyncio.sleep(0.001)
            for call in calls:
                call.cancel()
        await wait_for_metric(edges, "fivecrop_queue_views 2.0")
        await wait_for_metric(edges, 'fivecrop_inflight_requests{transport="grpc"} 0.0')
        edges.model.gate.set()
        assert await asyncio.gather(*blocked) == ["ok", "ok"]
        assert await ask_grpc(edges, JPEG) == "ok"
        assert sum(edges.model.batches) == 3


async def test_a_full_queue_refuses_over_both_transports_and_says_when_to_come_back(make_edges):
    edges = make_edges(max_queue_views=2)
    async with edges.http, edges.serving_grpc as served:
        edges.grpc = ImageClassifierStub(served.channel)
        blocked = await block(edges)
        response = await edges.http.post("/v1/classify", content=JPEG)
        assert read_http_code(response) == "overloaded"
        assert int(response.headers["retry-after"]) >= 1
        assert await ask_grpc(edges, JPEG) == "overloaded"
        edges.model.gate.set()
        assert await asyncio.gather(*blocked) == ["ok", "ok"]
        assert await ask_grpc(edges, JPEG) == "ok"


async def test_a_body_over_the_limit_gets_its_code_over_both_transports(make_edges):
    edges = make_edges(max_body_bytes=len(JPEG))
    async with edges.http, edges.serving_grpc as served:
        edges.grpc = ImageClassifierStub(served.channel)
        assert await ask_http(edges, JPEG) == "ok"
        assert await ask_grpc(edges, JPEG) == "ok"
        assert await ask_http(edges, JPEG + b"a") == "body_too_large"
        assert await ask_grpc(edges, JPEG + b"a") == "body_too_large"

        async def chunks():
            yield JPEG
            yield b"a"

        assert await ask_http(edges, None, content=chunks()) == "body_too_large"


async def test_a_url_is_never_fetched(edges):
    """The listener stands for whatever only this machine can reach."""
    visits = []

    async def note(reader, writer):
        visits.append(await reader.read(100))
        writer.close()

    listener = await asyncio.start_server(note, "127.0.0.1", 0)
    async with listener:
        url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/a.jpg"
        assert await ask_http(edges, None, json={"image": url}) == "url_not_allowed"
        for several in ({"json": {"images": [url]}}, {"files": {"image": url.encode()}}):
            response = await edges.http.post("/v1/classify", **several)
            assert response.json()["results"][0]["error"]["code"] == "url_not_allowed"
        assert await ask_http(edges, url.encode()) == "url_not_allowed"
        assert await ask_grpc(edges, url.encode()) == "url_not_allowed"
        await asyncio.sleep(0.1)
    assert not visits


LOWERED_LIMITS = {
    "max_image_aspect": (2, black_png(30, 10)),
    "max_image_frames": (1, encode("PNG", save_all=True, append_images=[Image.new("RGB", (9, 9))])),
    "max_jpeg_segments": (2, JPEG),
    "max_png_chunks": (2, encode("PNG")),
}


@pytest.mark.parametrize("name", LOWERED_LIMITS)
async def test_what_an_image_may_cost_is_a_setting(make_edges, name):
    limit, image = LOWERED_LIMITS[name]
    for given, code in (({name: limit}, "image_too_complex"), ({}, "ok")):
        edges = make_edges(**given)
        async with edges.http, edges.serving_grpc as served:
            edges.grpc = ImageClassifierStub(served.channel)
            assert await ask_http(edges, image) == code
            assert await ask_grpc(edges, image) == code
