"""What a client may do to hold a connection: nothing for long. uvicorn's own is the control."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest
import uvicorn

from service.errors import ErrorCode
from service.http_answer import STATUS
from service.http_api import build_http_app
from service.http_connection import TimedConnection
from service.http_host import make_connection, prepare_host
from service.settings import Settings

PATIENCE_S = 60  # for what takes a fraction of a second on a machine with nothing else to do
SHORT_S = 0.3
CONTROL_S = 1.5  # how long uvicorn's own class is seen to hold on; it would for ever


class App:
    """Answers `GET /` at once and `/slow` when told; `/stream` never stops to send."""

    def __init__(self):
        self.gate = asyncio.Event()
        self.answered = 0
        self.has_stopped = asyncio.Event()

    async def __call__(self, scope, receive, send):
        path, body = scope["path"], b"ok"
        if path == "/slow":
            await self.gate.wait()
        headers = [(b"content-length", b"2")]
        if path in ("/stream", "/large"):
            headers = [(b"connection", b"close")] if path == "/large" else []
            body = bytes(16_000_000)
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            for _ in range(100 if path == "/stream" else 0):
                await send({"type": "http.response.body", "body": body, "more_body": True})
            await send({"type": "http.response.body", "body": body})
        finally:
            self.answered += 1
            self.has_stopped.set()


@pytest.fixture
def app():
    return App()


@pytest.fixture
def short(metrics):
    """Makes connections with short limits."""
    settings = Settings(
        header_timeout_s=SHORT_S, write_timeout_s=SHORT_S, max_header_bytes=1024, keep_alive_s=1
    )
    return make_connection(settings, metrics)


@pytest.fixture
def connect(app, serving_http):
    """`async with connect(protocol) as (reader, writer):`"""

    class Connect:
        def __init__(self, protocol, **options):
            self._server, self._options = serving_http(app, protocol), options

        async def __aenter__(self):
            port = await self._server.__aenter__()
            reader, self._writer = await asyncio.open_connection("127.0.0.1", port, **self._options)
            return reader, self._writer

        async def __aexit__(self, *error):
            self._writer.close()
            await self._server.__aexit__(*error)

    return Connect


async def read_answer(reader):
    """(status, headers, body) of the next answer."""
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)).decode()
    status, *lines = head.strip().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return int(status.split()[1]), headers, await reader.readexactly(int(headers["content-length"]))


async def read_refusal(reader):
    """The code of the problem that the connection ends with."""
    status, headers, body = await read_answer(reader)
    problem = json.loads(body)
    assert headers["content-type"] == "application/problem+json"
    assert headers["connection"] == "close"
    assert problem["request_id"] == headers["x-request-id"]
    assert status == problem["status"] == STATUS[ErrorCode(problem["code"])]
    assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
    return problem["code"]


async def trickle(writer, data=b"x"):
    """Sends a byte now and again until the connection ends."""
    try:
        while True:
            writer.write(data)
            await writer.drain()
            await asyncio.sleep(SHORT_S / 5)
    except ConnectionError:
        pass


async def is_open_for(reader, seconds):
    try:
        return await asyncio.wait_for(reader.read(1), seconds) != b""
    except TimeoutError:
        return True


def counted(metrics, reason):
    line = f'fivecrop_connections_cut_off_total{{reason="{reason}"}} '
    return float(metrics.render()[0].decode().split(line)[1].split("\n")[0])


# ---- slow heads ----

SLOW = {
    "a head that never ends": b"POST / HTTP/1.1\r\nHost: x\r\nX: ",
    "a request line that never ends": b"GET /",
    "a head after an answered request": b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nX: ",
}


@pytest.mark.parametrize("name", SLOW)
async def test_a_slow_head_is_cut_off(connect, short, metrics, name):
    async with connect(short) as (reader, writer):
        writer.write(SLOW[name])
        if "answered" in name:
            assert (await read_answer(reader))[0] == 200
        sender = asyncio.create_task(trickle(writer))
        assert await read_refusal(reader) == "request_timeout"
        await asyncio.wait_for(sender, PATIENCE_S)
    assert counted(metrics, "slow_request") == 1


async def test_a_connection_that_asks_nothing_is_closed_without_a_word(connect, short):
    async with connect(short) as (reader, _):
        assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""


@pytest.mark.parametrize("name", [*SLOW, "nothing"])
async def test_the_control_waits_for_a_slow_head(connect, name):
    async with connect("httptools") as (reader, writer):
        writer.write(SLOW.get(name, b""))
        if "answered" in name:
            await read_answer(reader)
        sender = asyncio.create_task(trickle(writer))
        assert await is_open_for(reader, CONTROL_S)
        sender.cancel()


@pytest.mark.parametrize("rest", [b"\r\n", b"x"])
async def test_what_comes_after_an_answer_is_not_read_for_ever(connect, short, rest):
    """A body that nobody asked for, or empty lines: each byte would renew uvicorn's patience."""
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (10**6 * (rest == b"x"))
    for protocol in (short, "httptools"):
        async with connect(protocol) as (reader, writer):
            writer.write(head)
            await read_answer(reader)
            sender = asyncio.create_task(trickle(writer, rest))
            if protocol is short:
                assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
                await asyncio.wait_for(sender, PATIENCE_S)
            else:
                assert await is_open_for(reader, CONTROL_S)
                sender.cancel()


# ---- slow bodies ----


@pytest.mark.parametrize("is_limited", [True, False])
async def test_a_slow_body_is_cut_off(
    stub_classifier, metrics, make_settings, serving_http, is_limited
):
    """Without the limit, the control, the request waits for as long as its client sends."""
    settings = make_settings(request_read_timeout_s=SHORT_S if is_limited else 3600)
    app = build_http_app(stub_classifier, metrics, settings)
    async with serving_http(app, make_connection(settings, metrics)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /v1/classify HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n")
        sender = asyncio.create_task(trickle(writer))
        if is_limited:
            assert await read_refusal(reader) == "request_timeout"
            await asyncio.wait_for(sender, PATIENCE_S)
        else:
            assert await is_open_for(reader, CONTROL_S)
            sender.cancel()
        writer.close()
    assert not stub_classifier.calls


# ---- slow readers ----


@pytest.mark.parametrize("path", [b"/stream", b"/large"])
async def test_a_client_that_does_not_read_is_cut_off(connect, short, metrics, app, path):
    """`/large` is all handed over, and the connection closing, when the client stops to read."""
    async with connect(short, limit=1024) as (reader, writer):
        writer.transport.pause_reading()
        writer.write(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path)
        await asyncio.wait_for(app.has_stopped.wait(), PATIENCE_S)
        async with asyncio.timeout(PATIENCE_S):
            while not counted(metrics, "slow_reader"):
                await asyncio.sleep(0.01)
        writer.transport.resume_reading()
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(16_000_000)


async def test_the_control_waits_for_a_client_that_does_not_read(connect, app):
    async with connect("httptools", limit=1024) as (_, writer):
        writer.transport.pause_reading()
        writer.write(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(app.has_stopped.wait(), CONTROL_S)


async def test_a_client_that_reads_slowly_but_reads_gets_it_all(connect, short, metrics):
    async with connect(short) as (reader, writer):
        writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        got = 0
        while piece := await asyncio.wait_for(reader.read(2_000_000), PATIENCE_S):
            got += len(piece)
        assert got > 16_000_000
    assert counted(metrics, "slow_reader") == 0


# ---- large heads ----


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: x\r\n" * 1000 + b"\r\n",
        b"GET /" + b"x" * 1100 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 9\r\nX: " + b"x" * 1100 + b"\r\n\r\n123456789",
    ],
)
async def test_a_large_head_is_refused_and_never_answered(connect, short, app, metrics, head):
    async with connect(short) as (reader, writer):
        writer.write(head)
        assert await read_refusal(reader) == "headers_too_large"
    assert counted(metrics, "large_head") == 1


@pytest.mark.parametrize("last", [b"", b"\r\n\r\n"])
async def test_a_large_head_in_pieces_is_refused_as_soon_as_it_is_too_large(
    connect, short, metrics, last
):
    pieces = [b"GET / HTTP/1.1\r\nHost: x\r\nX: ", b"x" * 600, b"x" * 600 + last]
    async with connect(short) as (reader, writer):
        for piece in pieces:
            assert counted(metrics, "large_head") == 0
            writer.write(piece)
            await asyncio.sleep(0.02)
        assert await read_refusal(reader) == "headers_too_large"
    assert counted(metrics, "large_head") == 1


async def test_the_control_takes_a_large_head(connect):
    async with connect("httptools") as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n")
        assert (await read_answer(reader))[0] == 200


async def test_a_body_is_not_taken_for_a_head(connect, short):
    async with connect(short) as (reader, writer):
        for size in (0, 900, 1100, 100_000):
            writer.write(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))
            assert (await read_answer(reader))[0] == 200


# ---- what is not HTTP ----


async def test_what_is_not_http_is_refused_in_our_words(connect, short, metrics, caplog):
    async with connect(short) as (reader, writer):
        writer.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50))
        assert await read_refusal(reader) == "invalid_argument"
    assert counted(metrics, "not_http") == 1


# ---- everybody else ----


async def test_work_may_take_longer_than_any_of_these_times(connect, short, app):
    async with connect(short) as (reader, writer):
        writer.write(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await is_open_for(reader, 3 * SHORT_S)
        app.gate.set()
        assert (await read_answer(reader))[0] == 200


async def test_the_start_of_a_next_request_does_not_end_the_work_for_this_one(connect, short, app):
    async with connect(short) as (reader, writer):
        writer.write(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\n")
        assert await is_open_for(reader, 3 * SHORT_S)
        app.gate.set()
        assert (await read_answer(reader))[0] == 200
        assert await read_refusal(reader) == "request_timeout"


async def test_an_idle_connection_is_kept_longer_than_a_head_may_take(connect, short):
    async with connect(short) as (reader, writer):
        for _ in range(3):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await read_answer(reader))[0] == 200
            assert await is_open_for(reader, 2 * SHORT_S)


async def test_pipelined_requests_are_all_answered(connect, short, app):
    async with connect(short) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
        for _ in range(1000):
            assert (await read_answer(reader))[0] == 200
    assert app.answered == 1000


async def test_an_answered_request_leaves_no_timer_of_ours(connect, short):
    """The claim about the cost: timers are only set when something is not there yet."""
    made = []

    def make(**host):
        made.append(short(**host))
        return made[-1]

    async with connect(make) as (reader, writer):
        for _ in range(2):
            writer.write(b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc")
            await read_answer(reader)
            (connection,) = made
            assert connection._read_timer is connection._write_timer is None


# ---- the host ----


def test_a_host_that_is_not_the_expected_one_is_refused_at_the_start(metrics, monkeypatch):
    from service.errors import StartError

    monkeypatch.setattr("signal.getsignal", lambda number: None)
    with pytest.raises(StartError, match="uvicorn"):
        prepare_host(Settings(), metrics)


async def test_a_host_makes_our_connections_when_it_starts_to_listen(metrics, monkeypatch):
    server = uvicorn.Server(uvicorn.Config(App(), log_config=None, port=0, lifespan="off"))
    monkeypatch.setattr("signal.getsignal", lambda number: server.handle_exit)
    prepare_host(Settings(), metrics)
    server.config.load()
    prepare_host(Settings(), metrics)
    assert server.config.http_protocol_class.func is TimedConnection
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        server.lifespan = server.config.lifespan_class(server.config)
        await server.startup(sockets=[bound])
        reader, writer = await asyncio.open_connection(*bound.getsockname())
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert (await read_answer(reader))[0] == 200
        (connection,) = server.server_state.connections
        assert isinstance(connection, TimedConnection)
        writer.close()
        server.servers[0].close()
