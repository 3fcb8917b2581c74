"""What the edges hold is bounded in requests and in bytes that arrived."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from service.errors import ErrorCode, RequestError
from service.http_api import build_http_app
from service.intake import Intake
from service.metrics import Metrics


def make_intake(**bounds):
    return Intake(**{"max_requests": 2, "max_bytes": 100, "metrics": Metrics(), **bounds})


def test_requests_are_bounded_and_make_room_when_they_end():
    intake = make_intake()
    with intake.admit():
        with intake.admit(), pytest.raises(RequestError) as refused, intake.admit():
            pass
        assert refused.value.code is ErrorCode.OVERLOADED
        with intake.admit():
            pass


def test_bytes_are_counted_as_they_arrive_and_given_back_after_an_error():
    intake = make_intake()
    with contextlib.suppress(ZeroDivisionError), intake.admit() as held:
        held.add(60)
        with intake.admit() as other, pytest.raises(RequestError):
            other.add(60)
        raise ZeroDivisionError
    assert intake.held_bytes == 0
    with intake.admit() as held:
        held.add(100)


def test_refusals_are_counted():
    metrics = Metrics()
    intake = make_intake(max_requests=1, metrics=metrics)
    with intake.admit(), pytest.raises(RequestError), intake.admit():
        pass
    assert 'rejected_total{reason="intake_full"} 1.0' in metrics.render()[0].decode()


async def send(writer, reader, body, *, declared=None, path="/v1/classify", method="POST"):
    size = declared or len(body)
    head = f"{method} {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {size}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()


async def read(reader):
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
    size = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
    return int(head[9:12]), head.lower(), await reader.readexactly(size)


async def test_a_promise_of_bytes_holds_nothing_and_bytes_that_came_do(
    stub_classifier, metrics, make_settings, serving_http
):
    app = build_http_app(stub_classifier, metrics, make_settings(max_inflight_bytes=900_000))
    async with serving_http(app) as port:
        slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
        for reader, writer in slow:
            await send(writer, reader, b"x", declared=9_000_000)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await send(writer, reader, b"img" * 100_000)
        assert (await read(reader))[0] == 200
        # The naive control, a bound on promises, would have refused that one already.
        stub_classifier.gate = asyncio.Event()
        await send(writer, reader, b"img" * 250_000)
        await asyncio.wait_for(stub_classifier.arrived.wait(), 20)
        second_reader, second = await asyncio.open_connection("127.0.0.1", port)
        await send(second, second_reader, b"img" * 100_000)
        status, head, body = await read(second_reader)
        assert (status, json.loads(body)["code"]) == (503, "overloaded")
        assert b"retry-after: 1" in head
        await send(second, second_reader, b"", method="GET", path="/readyz", declared="0")
        assert (await read(second_reader))[0] == 200, "probes are answered whatever is going on"
        stub_classifier.gate.set()
        assert (await read(reader))[0] == 200
        await send(second, second_reader, b"img" * 100_000)
        assert (await read(second_reader))[0] == 200
        for _, each in [*slow, (reader, writer), (second_reader, second)]:
            each.close()


async def test_a_hopeless_request_is_refused_before_its_body_is_read(
    stub_classifier, metrics, make_settings, serving_http
):
    def refuse(options):
        raise RequestError(ErrorCode.OVERLOADED, "full", retry_after_s=2.5)

    app = build_http_app(stub_classifier, metrics, make_settings())
    usual = stub_classifier.refuse_early
    async with serving_http(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for size in (1_000, 100_000, 5_000_000):
            stub_classifier.refuse_early = refuse
            await send(writer, reader, b"i", declared=size)
            status, head, _ = await read(reader)
            assert (status, stub_classifier.calls) == (503, [])
            assert b"retry-after: 3" in head
            # The rest still comes, and the connection goes on to carry the next request.
            writer.write(bytes(size - 1))
            stub_classifier.refuse_early = usual
            await send(writer, reader, b"img")
            assert (await read(reader))[0] == 200
            stub_classifier.calls.clear()
        writer.close()
