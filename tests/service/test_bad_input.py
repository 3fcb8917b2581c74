"""Bad input gets one stable code, the same over HTTP and gRPC, and disturbs nothing beside it.

Only the model is a toy; edges, limits, decoders, queue and threads are the real ones.
"""

from __future__ import annotations

import asyncio
import base64
import io
import struct
import zlib
from types import SimpleNamespace

import grpc
import httpx
import numpy as np
import pytest
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


# ---- the files ----


def encode(format="JPEG", size=(64, 48), **options):
    y, x = np.mgrid[: size[1], : size[0]]
    pixels = np.stack([x * 3 % 256, y * 5 % 256, (x * y) % 256], axis=-1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_that_claims(width, height):
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = png_chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + header + data + png_chunk(b"IEND", b"")


def black_png(width, height):
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()


def jpeg_that_claims(width, height):
    """A small JPEG with another size written over the one in its frame header."""
    data = bytearray(encode())
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def scan_bomb(scans):
    data = encode(progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


JPEG = encode()
RANDOM = np.random.default_rng(0).bytes(10_000)
SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><rect width="9"/></svg>'
PICKLE = b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93."

FILES = {
    "nothing": (b"", "empty_body"),
    "random bytes": (RANDOM, "unsupported_media"),
    "a PNG of 100,000 x 100,000 by its header": (png_that_claims(10**5, 10**5), "image_too_large"),
    "a PNG of 2^31 - 1 wide by its header": (png_that_claims(2**31 - 1, 1), "image_too_large"),
    "a PNG of no pixels": (png_that_claims(0, 0), "image_corrupt"),
    "a PNG of 41 megapixels": (black_png(8200, 5000), "image_too_large"),
    "a JPEG of 65,500 x 65,500 by its header": (jpeg_that_claims(65500, 65500), "image_too_large"),
    "a JPEG with 1,000 scans": (scan_bomb(1000), "image_too_complex"),
    "an image 101 times as wide as high": (black_png(1010, 10), "image_too_complex"),
    "SVG": (SVG, "unsupported_media"),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<<>>\nendobj\n", "unsupported_media"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unsupported_media"),
    "HTML": (b"<!doctype html><title>404</title>", "unsupported_media"),
    "text": (b"hello", "unsupported_media"),
    "one byte": (b"\xff", "unsupported_media"),
    "a GIF, which is off by default": (encode("GIF"), "unsupported_media"),
    "a TIFF, which is off by default": (encode("TIFF"), "unsupported_media"),
    "a ZIP": (b"PK\x03\x04" + bytes(100), "unsupported_media"),
    "a pickle": (PICKLE, "unsupported_media"),
    "an npy file": (b"\x93NUMPY\x01\x00v\x00{'descr': '|O'}" + bytes(100), "unsupported_media"),
    "a JPEG header and nothing else": (b"\xff\xd8\xff\xe0", "image_corrupt"),
    "a PNG signature and nothing else": (b"\x89PNG\r\n\x1a\n", "image_corrupt"),
    "a WebP header and nothing else": (b"RIFF\x04\x00\x00\x00WEBP", "image_corrupt"),
    "a JPEG without scan": (JPEG[: JPEG.index(b"\xff\xda")] + b"\xff\xd9", "image_corrupt"),
    "a URL": (b"http://127.0.0.1/a.jpg", "url_not_allowed"),
    "a file URL": (b"file:///etc/passwd", "url_not_allowed"),
    **{
        f"a JPEG cut at {part} of 17": (JPEG[: len(JPEG) * part // 17], "image_corrupt")
        for part in range(1, 17)
    },
    **{
        f"a {form} cut in the middle": (encode(form)[: len(encode(form)) // 2], "image_corrupt")
        for form in ("PNG", "WebP")
    },
}

OPTIONS = {
    "an unknown model": ({"model": "nope"}, "model_not_found"),
    "an empty model": ({"model": ""}, "model_not_found"),
    "a model in another folder": ({"model": "../tiny"}, "model_not_found"),
    "a model at the end of a path": ({"model": "../../etc/passwd"}, "model_not_found"),
    "a model with a NUL": ({"model": "tiny\0"}, "model_not_found"),
    "a model with a long name": ({"model": "a" * 4000}, "model_not_found"),
    "a model in upper case": ({"model": "TINY"}, "model_not_found"),
    "an unknown version": ({"model": "tiny@2"}, "model_not_found"),
    "a version that is no number": ({"model": "tiny@latest"}, "model_not_found"),
    "a version with a path": ({"model": "tiny@1/../1"}, "model_not_found"),
    "no predictions": ({"top_k": 0}, "invalid_argument"),
    "less than no predictions": ({"top_k": -1}, "invalid_argument"),
    "unknown augmentation": ({"tta": "mirror"}, "invalid_argument"),
    "empty augmentation": ({"tta": ""}, "invalid_argument"),
    "augmentation in upper case": ({"tta": "HFLIP"}, "invalid_argument"),
}


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
