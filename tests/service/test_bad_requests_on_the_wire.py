"""Requests that no client library would send, byte by byte, to every route that takes images."""

from __future__ import annotations

import asyncio
import json

import pytest
from bad_requests import JPEG

from service.errors import ErrorCode
from service.http_answer import STATUS
from service.http_api import build_http_app
from service.http_host import make_connection

PATIENCE_S = 60  # for what takes milliseconds on a machine with nothing else to do

# The form that each route takes; what is wrong is the request around it.
RAW = b"application/octet-stream", JPEG
ROUTES = {
    "/v1/classify": RAW,
    "/v1/explain": RAW,
    "/v2/models/tiny/infer": (
        b"application/octet-stream\r\nInference-Header-Content-Length: 0",
        JPEG,
    ),
    "/predictions/tiny": RAW,
    "/invocations": RAW,
    "/v1/models/tiny:predict": (b"application/json", b'{"instances": []}'),
}


def length(value):
    return b"Content-Length: " + value + b"\r\n"


CHUNKED = b"Transfer-Encoding: chunked\r\n"
# Name -> (header lines, body; None is the route's own, error code).
REQUESTS = {
    "a header of 100 kB": (b"X-Large: " + b"x" * 100_000 + b"\r\n", None, "headers_too_large"),
    "1,000 headers": (
        b"".join(b"X-%d: 123456789\r\n" % n for n in range(1000)),
        None,
        "headers_too_large",
    ),
    "two lengths": (length(b"4") + length(b"5"), b"abcde", "invalid_argument"),
    "the same length twice": (length(b"5") + length(b"5"), b"abcde", "invalid_argument"),
    "a negative length": (length(b"-5"), b"abcde", "invalid_argument"),
    "a length with a sign": (length(b"+5"), b"abcde", "invalid_argument"),
    "a length in hexadecimal": (length(b"0x5"), b"abcde", "invalid_argument"),
    "a length that overflows": (length(b"9" * 30), b"abcde", "invalid_argument"),
    "a length over the limit": (length(b"999999999999"), b"abcde", "body_too_large"),
    "a length and chunks": (length(b"5") + CHUNKED, b"5\r\nabcde\r\n0\r\n\r\n", "invalid_argument"),
    "chunks and a length": (CHUNKED + length(b"5"), b"5\r\nabcde\r\n0\r\n\r\n", "invalid_argument"),
    "chunked twice": (CHUNKED * 2, b"5\r\nabcde\r\n0\r\n\r\n", "invalid_argument"),
    "an unknown transfer coding": (b"Transfer-Encoding: x\r\n", b"abcde", "invalid_argument"),
    "a chunk size that is none": (CHUNKED, b"z\r\nabcde\r\n0\r\n\r\n", "invalid_argument"),
    "a negative chunk size": (CHUNKED, b"-1\r\nabcde\r\n0\r\n\r\n", "invalid_argument"),
    "a chunk size that overflows": (
        CHUNKED,
        b"f" * 20 + b"\r\nabcde\r\n0\r\n\r\n",
        "invalid_argument",
    ),
    "two content types": (b"Content-Type: image/png\r\n", None, "invalid_argument"),
    "two hosts": (b"Host: other\r\n", None, "invalid_argument"),
    "two request ids": (b"X-Request-Id: a\r\nX-Request-Id: b\r\n", None, "invalid_argument"),
    "two deadlines": (
        b"X-Request-Timeout-Ms: 1\r\nX-Request-Timeout-Ms: 9999\r\n",
        None,
        "invalid_argument",
    ),
    "two ends of the JSON": (
        b"Inference-Header-Content-Length: 1\r\n" * 2,
        None,
        "invalid_argument",
    ),
    "an unknown content encoding": (b"Content-Encoding: br\r\n", None, "unsupported_encoding"),
    "a header without a colon": (b"no colon\r\n", None, "invalid_argument"),
    "a header name with a space": (b"Content Length: 5\r\n", None, "invalid_argument"),
    "a folded header": (b"X-Long: a\r\n b\r\n", None, "invalid_argument"),
    "a NUL in a header": (b"X-Nul: a\0b\r\n", None, "invalid_argument"),
}


@pytest.fixture
async def port(make_tiny_model, make_settings, metrics, serving_http):
    """The port of a real server with every drop-in on, over the tiny model."""
    settings = make_settings(torchserve=True, tfserving=True, sagemaker=True)
    app = build_http_app(make_tiny_model(settings).classifier, metrics, settings)
    async with serving_http(app, make_connection(settings, metrics)) as port:
        yield port


async def send(port, path, extra, body, content_type):
    """Returns (status, headers, body) of the answer to a request on a connection of its own."""
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: %s\r\n%s\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(head % (path.encode(), content_type, extra) + body)
        async with asyncio.timeout(PATIENCE_S):
            answer = await reader.readuntil(b"\r\n\r\n")
            lines = answer.decode().strip().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines[1:])
            text = await reader.readexactly(int(headers["content-length"]))
        return int(lines[0].split()[1]), headers, text
    finally:
        writer.close()


@pytest.mark.parametrize("path", ROUTES)
async def test_a_bad_request_gets_its_code_and_the_next_one_its_answer(port, path):
    content_type, good = ROUTES[path]
    told = {}
    for name, (extra, body, code) in REQUESTS.items():
        if body is None:
            extra, body = extra + length(b"%d" % len(good)), good
        status, headers, answer = await send(port, path, extra, body, content_type)
        problem = json.loads(answer)
        assert headers["content-type"] == "application/problem+json", name
        assert status == problem["status"] == STATUS[ErrorCode(problem["code"])] < 500, name
        if problem["code"] != code:
            told[name] = problem["code"]
    assert told == {}
    status, *_ = await send(port, path, length(b"%d" % len(good)), good, content_type)
    assert status == (400 if path.endswith(":predict") else 200)
