"""Frames of HTTP/2 that no gRPC library sends, byte by byte, to the real server."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import sys

import grpc
import pytest
from bad_requests import JPEG

from service.errors import RequestError
from service.grpc_guard import guard
from service.proto import image_classifier_pb2 as messages
from service.proto.image_classifier_pb2_grpc import ImageClassifierStub
from service.time_limit import TimeLimit

PATIENCE_S = 60  # for what takes seconds on a machine with nothing else to do
STREAMS = 10_000
BURST = 100
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, END_HEADERS, CANCEL = 1, 4, 8
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def text(value):
    return bytes((len(value),)) + value


# HPACK (RFC 7541): POST and http by their places in its table, the others spelt out.
HEAD = (
    b"\x83\x86"
    + (b"\x04" + text(b"/fivecrop.v1.ImageClassifier/Classify"))
    + (b"\x01" + text(b"fivecrop"))
    + (b"\x00" + text(b"content-type") + text(b"application/grpc"))
    + (b"\x00" + text(b"te") + text(b"trailers"))
)
MESSAGE = messages.ClassifyRequest(image=JPEG).SerializeToString()
CALL = b"\0" + struct.pack(">I", len(MESSAGE)) + MESSAGE


def opened(stream):
    return frame(HEADERS, END_HEADERS, stream, HEAD) + frame(DATA, END_STREAM, stream, CALL)


def reset(stream):
    return frame(RST_STREAM, 0, stream, struct.pack(">I", CANCEL))


@pytest.fixture
async def served(make_tiny_model, make_settings, metrics, serving_grpc):
    settings = make_settings()
    async with serving_grpc(make_tiny_model(settings).classifier, metrics, settings) as served:
        yield served


@contextlib.asynccontextmanager
async def connect(port):
    """A connection past its preface: (reader, writer)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(PREFACE + frame(SETTINGS, 0, 0))
    try:
        yield reader, writer
    finally:
        writer.close()


async def read_frames(reader):
    """The kinds of the frames until the connection ends, and the last one's payload."""
    kinds, payload = [], b""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = await reader.readexactly(9)
            kinds.append(head[3])
            payload = await reader.readexactly(int.from_bytes(head[:3]))
    return kinds, payload


async def test_the_frames_are_those_of_a_call(served):
    """The control: without a reset the call is answered."""
    async with connect(served.port) as (reader, writer):
        writer.write(opened(1))
        answer = b""
        async with asyncio.timeout(PATIENCE_S):
            while b"green" not in answer:
                answer += await reader.read(65536)


async def test_streams_that_are_opened_and_reset_ten_thousand_times_leave_nothing_behind(
    served, metrics
):
    """gRPC's library ends them before they are calls; those of test_bad_input.py were begun."""
    async with asyncio.timeout(3 * PATIENCE_S), connect(served.port) as (reader, writer):
        reading = asyncio.create_task(read_frames(reader))
        with contextlib.suppress(ConnectionError):  # that it ends the connection is its right
            for first in range(1, 2 * STREAMS, 2 * BURST):
                streams = range(first, first + 2 * BURST, 2)
                writer.write(b"".join(opened(one) + reset(one) for one in streams))
                await writer.drain()
        # Another client is served meanwhile.
        stub = ImageClassifierStub(served.channel)
        answer = await stub.Classify(messages.ClassifyRequest(image=JPEG), timeout=PATIENCE_S)
        assert answer.predictions
        writer.close()
        await reading
        for none_left in (
            'fivecrop_inflight_requests{transport="grpc"} 0.0',
            "fivecrop_queue_views 0.0",
        ):
            while none_left not in metrics.render()[0].decode():
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("part", [b"", CALL[: len(CALL) // 2]])
async def test_a_message_that_does_not_arrive_is_not_waited_for(
    make_tiny_model, make_settings, metrics, serving_grpc, part
):
    settings = make_settings(request_read_timeout_s=0.3)
    model = make_tiny_model(settings)
    async with (
        serving_grpc(model.classifier, metrics, settings) as served,
        asyncio.timeout(PATIENCE_S),
        connect(served.port) as (reader, writer),
    ):
        writer.write(frame(HEADERS, END_HEADERS, 1, HEAD) + (part and frame(DATA, 0, 1, part)))
        answer = b""
        while b"did not arrive in time" not in answer:
            answer += await reader.read(65536)
    assert 'code="request_timeout",route="/fivecrop.v1.ImageClassifier/Classify"' in (
        metrics.render()[0].decode()
    )


async def test_the_read_of_a_message_that_is_late_is_not_cancelled():
    """The library frees what arrives only when the read ends by itself: 10 MiB a time."""
    ended = []

    class Late:
        async def read(self):
            try:
                await asyncio.sleep(0.1)
            finally:
                ended.append(sys.exception())

    async def refuse(_context, error):
        raise error

    handler = grpc.unary_unary_rpc_method_handler(None, bytes, bytes)
    guarded = guard(handler, refuse, TimeLimit(0.01)).stream_unary
    with pytest.raises(RequestError, match="did not arrive in time"):
        await guarded(None, Late())
    async with asyncio.timeout(PATIENCE_S):
        while not ended:
            await asyncio.sleep(0.01)
    assert ended == [None]


async def test_a_flood_of_pings_ends_its_connection(served):
    async with asyncio.timeout(PATIENCE_S), connect(served.port) as (reader, writer):
        with contextlib.suppress(ConnectionError):
            writer.write(frame(PING, 0, 0, bytes(8)) * 1000)
            await writer.drain()
        kinds, payload = await read_frames(reader)
    assert kinds[-1] == GOAWAY
    assert b"too_many_pings" in payload


async def test_metadata_of_100_kb_is_refused(served):
    stub = ImageClassifierStub(served.channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Classify(
            messages.ClassifyRequest(image=JPEG),
            metadata=(("x-large", "x" * 100_000),),
            timeout=PATIENCE_S,
        )
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await stub.Classify(messages.ClassifyRequest(image=JPEG))).predictions
