"""What browsers are told, what strangers are told, and that nobody is told about the machine."""

from __future__ import annotations

import asyncio
import re

import httpx
import pytest
from failing import Babbling, Failing
from machine import WORDS

from service.access import AccessControl
from service.errors import ErrorCode, RequestError
from service.http_api import build_http_app
from service.http_cors import allow_origins
from service.http_host import make_connection
from service.settings import Settings

ORIGIN = "https://shop.example"


@pytest.fixture
def ask_from_a_page(stub_classifier, metrics, make_settings):
    """A function from allowed origins to a client that sends its own."""

    def client(*origins):
        app = allow_origins(build_http_app(stub_classifier, metrics, make_settings()), origins)
        transport = httpx.ASGITransport(app)
        headers = {"origin": ORIGIN}
        return httpx.AsyncClient(transport=transport, base_url="http://fivecrop", headers=headers)

    return client


# ---- browsers ----


async def test_by_default_no_page_of_another_origin_may_read_an_answer(ask_from_a_page):
    async with ask_from_a_page() as client:
        answer = await client.post("/v1/classify", content=b"img")
        preflight = await client.options(
            "/v1/classify", headers={"access-control-request-method": "POST"}
        )
    assert preflight.status_code == 405
    for headers in (answer.headers, preflight.headers):
        assert not [name for name in headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("origins", "is_allowed"), [((ORIGIN,), True), (("*",), True), (("https://a.example",), False)]
)
async def test_a_page_of_an_allowed_origin_may(ask_from_a_page, origins, is_allowed):
    async with ask_from_a_page("https://b.example", *origins) as client:
        preflight = await client.options(
            "/v1/classify",
            headers={
                "access-control-request-method": "POST",
                "access-control-request-headers": "authorization,x-request-id",
            },
        )
        answer = await client.post("/v1/classify", content=b"img")
    assert (preflight.status_code == 200) == is_allowed
    for headers in (preflight.headers, answer.headers):
        assert (headers.get("access-control-allow-origin") in (ORIGIN, "*")) == is_allowed
        assert "access-control-allow-credentials" not in headers
    if is_allowed:
        assert "authorization" in preflight.headers["access-control-allow-headers"]
        assert "x-request-id" in answer.headers["access-control-expose-headers"].lower()


async def test_every_answer_forbids_to_sniff_frame_or_run_it(http_client):
    for path in ("/v1/models", "/nowhere", "/", "/docs", "/docs.js", "/metrics", "/livez"):
        headers = (await http_client.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff", path
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; "), path
        assert "frame-ancestors 'none'" in policy, path
        assert "unsafe" not in policy, path
        if path == "/" or path.startswith("/docs"):
            assert headers["referrer-policy"] == "no-referrer"
            assert headers["x-frame-options"] == "DENY"


# ---- the machine ----

REQUESTS = {
    "not HTTP": b"\x00\x01\x02\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "a bad version": b"GET / HTTP/9.9\r\n\r\n",
    "a bad method": b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a bad length": b"POST /v1/classify HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "both lengths": b"POST /v1/classify HTTP/1.1\r\nContent-Length: 3\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a folded header": b"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
    "a large head": b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
    "a slow head": b"GET / HTTP/1.1\r\n",
    "an upgrade": b"GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
    "HTTP/2 without TLS": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a proxy request": b"GET http://example.org/ HTTP/1.1\r\nHost: example.org\r\n\r\n",
    "CONNECT": b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n",
    "TRACE": b"TRACE / HTTP/1.1\r\nHost: x\r\n\r\n",
    "OPTIONS": b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    "a path": b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
    "a URL with bytes": b"GET /\xff\xfe%00 HTTP/1.1\r\nHost: x\r\n\r\n",
    "an unforeseen error": b"POST /v1/classify HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
    "a refusal": b"GET /v1/models?x=1 HTTP/1.1\r\nHost: x\r\n\r\n",
    "models": b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
    "the server of v2": b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("name", REQUESTS)
async def test_no_answer_tells_of_the_machine_or_what_the_service_is_made_of(
    stub_classifier, metrics, make_settings, serving_http, name
):
    settings = make_settings(header_timeout_s=0.2, keep_alive_s=1)
    stub_classifier.error = OSError("cannot open " + __file__)
    app = build_http_app(stub_classifier, metrics, settings)
    async with serving_http(app, make_connection(settings, metrics)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUESTS[name])
        if name != "a slow head":
            writer.write_eof()
        answer = (await asyncio.wait_for(reader.read(), 60)).decode("latin-1")
        writer.close()
    assert answer.startswith("HTTP/1.1 ")
    assert not re.search("^server:", answer, re.I | re.M)
    told = WORDS.search(answer)
    assert told is None, answer


@pytest.mark.parametrize("classifier", [Failing, Babbling])
async def test_no_unforeseen_error_of_a_route_tells_of_the_machine(
    metrics, make_settings, caplog, classifier
):
    control = AccessControl(None)
    control.needs_key = lambda access: False
    settings = make_settings(torchserve=True, tfserving=True, sagemaker=True)
    app = build_http_app(classifier(), metrics, settings, control, {"routes": []})
    failed = set()
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://fivecrop") as client:
        for route in app.router.routes:
            path = re.sub("{name}|{model}", "toy", route.path).replace("{version}", "3")
            for method in route.methods:
                answer = await client.request(method, path, content=b"img")
                if answer.status_code == 500:
                    failed.add(route.path)
                    assert WORDS.search(answer.text + str(answer.headers)) is None, answer.text
    assert {"/v1/classify", "/v1/models", "/v1/explain", "/invocations"} <= failed
    assert len(failed) > 15
    assert "unexpected error" in caplog.text


async def test_details_of_a_refusal_hold_nothing_of_the_request(http_client, stub_classifier):
    stub_classifier.error = RequestError(ErrorCode.MODEL_NOT_FOUND, "no such model")
    answer = await http_client.get("/v1/models/<script>alert(1)<script>")
    assert "script" not in answer.text


def test_origins_come_from_one_variable(monkeypatch):
    monkeypatch.setenv("FIVECROP_CORS_ORIGINS", f"{ORIGIN}, https://b.example")
    assert Settings().cors_origins == (ORIGIN, "https://b.example")
