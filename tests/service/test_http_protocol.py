"""What a connection costs: wake-ups of the application, writes to the socket."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar

import pytest
import uvicorn
from uvicorn.server import ServerState

from service.http_protocol import CONNECTION, HttpConnection

HEAD = b"%s / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


class Wire(asyncio.Transport):
    """What would go out on the socket, write by write."""

    def __init__(self):
        super().__init__()
        self.writes = []
        self.is_closed = False

    def write(self, data):
        assert not self.is_closed
        self.writes.append(bytes(data))

    def close(self):
        self.is_closed = True

    def is_closing(self):
        return self.is_closed

    def pause_reading(self):
        pass

    resume_reading = pause_reading


class App:
    """Reads a body to its end, then answers."""

    def __init__(self):
        self.messages = []
        self.scope = None
        self.fails = False

    async def __call__(self, scope, receive, send):
        self.scope = scope
        while True:
            self.messages.append(await receive())
            if not self.messages[-1].get("more_body"):
                break
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if self.fails:
            raise ValueError
        await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def app():
    return App()


@pytest.fixture
def wire():
    return Wire()


@pytest.fixture
async def connection(app, wire):
    config = uvicorn.Config(app, http=HttpConnection, lifespan="off", log_config=None)
    config.load()
    connection = HttpConnection(config, ServerState(), {})
    connection.connection_made(wire)
    yield connection
    connection.connection_lost(None)


async def finish(connection):
    await asyncio.gather(*connection.tasks)


async def test_head_and_body_of_an_answer_are_one_write(connection, wire):
    connection.data_received(HEAD % (b"POST", 3) + b"abc")
    await finish(connection)
    (answer,) = wire.writes
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\nok")


async def test_the_answer_to_head_is_sent_without_a_body(connection, wire):
    connection.data_received(HEAD % (b"HEAD", 0))
    await finish(connection)
    assert b"".join(wire.writes).endswith(b"content-length: 2\r\n\r\n")


async def test_a_client_that_waits_is_told_to_continue_at_once(connection, wire):
    head = HEAD.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n") % (b"POST", 3)
    connection.data_received(head)
    await asyncio.sleep(0)
    assert wire.writes == [b"HTTP/1.1 100 Continue\r\n\r\n"]
    connection.data_received(b"abc")
    await finish(connection)
    assert len(wire.writes) == 2


@pytest.mark.filterwarnings("ignore")
async def test_an_answer_that_breaks_off_shows_its_head_and_ends(connection, wire, app):
    app.fails = True
    connection.data_received(HEAD % (b"POST", 3) + b"abc")
    await finish(connection)
    assert wire.is_closed
    assert b"".join(wire.writes).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_a_body_in_pieces_wakes_the_application_once(connection, app):
    connection.data_received(HEAD % (b"POST", 120_000))
    for _ in range(12):
        connection.data_received(bytes(10_000))
        await asyncio.sleep(0)
    await finish(connection)
    (message,) = app.messages
    assert len(message["body"]) == 120_000


async def test_a_long_body_is_handed_over_in_pieces_that_a_limit_can_stop(connection, app):
    connection.data_received(HEAD % (b"POST", 1_000_000))
    for _ in range(100):
        connection.data_received(bytes(10_000))
        await asyncio.sleep(0)
    await finish(connection)
    assert len(app.messages) > 2
    assert max(len(message["body"]) for message in app.messages) < 300_000
    assert sum(len(message["body"]) for message in app.messages) == 1_000_000


async def test_every_piece_of_a_body_of_unknown_length_is_heard_of(connection, app):
    head = HEAD.replace(b"Content-Length: %d", b"Transfer-Encoding: chunked") % b"POST"
    connection.data_received(head)
    for chunk in (b"3\r\nabc\r\n", b"3\r\ndef\r\n", b"0\r\n\r\n"):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        connection.data_received(chunk)
    await finish(connection)
    assert [message["body"] for message in app.messages] == [b"abc", b"def", b""]


async def test_the_request_can_ask_to_hear_of_the_clients_leaving(connection, app):
    connection.data_received(HEAD % (b"POST", 3) + b"abc")
    await finish(connection)
    left = []
    app.scope[CONNECTION].on_lost = lambda: left.append(True)
    connection.connection_lost(None)
    assert left == [True]
    assert connection.is_lost
    connection.on_lost = None


async def test_a_pipelined_request_knows_nothing_of_the_one_before_it(serving_http):
    """uvicorn starts it inside the task of the one before; `X-Sticky-Key` would be inherited."""
    key, seen = ContextVar("key", default=None), []

    async def app(scope, receive, send):
        seen.append(key.get())
        key.set(scope["path"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with serving_http(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(3))
        )
        async with asyncio.timeout(20):
            while len(seen) < 3:
                await reader.read(1000)
        writer.close()
        await writer.wait_closed()
    assert seen == [None] * 3
