"""The order in which a worker ends."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from service.drain import Drain, close_after_answer
from service.settings import Settings


class Recorder:
    """Stands for the classifier, the gRPC server and the host; writes down what happens."""

    def __init__(self):
        self.events = []
        self.is_draining = False
        self.host_was_stopped = asyncio.Event()

    def start_drain(self):
        self.is_draining = True
        self.events.append("not ready")

    def set_not_serving(self):
        self.events.append("NOT_SERVING")

    def close_connections(self):
        self.events.append("close connections")

    async def stop(self, grace_s):
        self.events.append(f"gRPC stops, grace {grace_s:g}")

    async def close(self):
        self.events.append("classifier closed")

    def stop_host(self, number, frame):
        self.events.append(f"host gets {signal.Signals(number).name}")
        self.host_was_stopped.set()


ANNOUNCED = ["not ready", "NOT_SERVING", "close connections"]


@pytest.fixture
async def recorder():
    """The host's handler is there before ours, as uvicorn's is."""
    recorder = Recorder()
    old = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, recorder.stop_host)
    yield recorder
    loop = asyncio.get_running_loop()
    for number, handler in old.items():
        loop.remove_signal_handler(number)
        signal.signal(number, handler)


def make_drain(recorder, drain_s):
    settings = Settings(drain_s=drain_s, shutdown_grace_s=25)
    drain = Drain(recorder, recorder, settings, recorder.close_connections)
    drain.install()
    return drain


async def test_sigterm_says_not_ready_first_and_stops_after_the_wait(recorder):
    drain = make_drain(recorder, drain_s=0.05)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0.01)
    assert recorder.events == ANNOUNCED
    await recorder.host_was_stopped.wait()
    await drain.finish()
    assert recorder.events[:3] == ANNOUNCED
    assert sorted(recorder.events[3:5]) == ["gRPC stops, grace 25", "host gets SIGTERM"]
    assert recorder.events[5:] == ["classifier closed"]


async def test_interrupt_does_not_wait_and_stops_the_host_as_sigterm_would(recorder):
    make_drain(recorder, drain_s=600)
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.wait_for(recorder.host_was_stopped.wait(), 10)
    assert "host gets SIGTERM" in recorder.events


async def test_second_signal_changes_nothing(recorder):
    make_drain(recorder, drain_s=600)
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        os.kill(os.getpid(), number)
        await asyncio.sleep(0.01)
    assert recorder.events == ANNOUNCED


async def test_host_that_ends_by_itself_still_stops_grpc_and_the_classifier(recorder):
    await make_drain(recorder, drain_s=600).finish()
    assert recorder.events == ["gRPC stops, grace 25", "classifier closed"]


async def test_answers_while_draining_close_their_connection_and_change_in_nothing_else():
    async def app(scope, receive, send):
        headers = [(b"content-type", b"text/plain"), (b"connection", b"keep-alive")]
        await send({"type": "http.response.start", "status": 418, "headers": headers})
        await send({"type": "http.response.body", "body": b"tea"})

    sent = []

    async def send(message):
        sent.append(message)

    await close_after_answer(app)({"type": "http"}, None, send)
    assert sent == [
        {
            "type": "http.response.start",
            "status": 418,
            "headers": [(b"content-type", b"text/plain"), (b"connection", b"close")],
        },
        {"type": "http.response.body", "body": b"tea"},
    ]
