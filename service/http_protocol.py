"""One HTTP connection: uvicorn's, with fewer wake-ups and system calls a request.

uvicorn wakes the application for each piece of a body that arrives, and writes an answer's head
and body one by one; both cost more than they look, because the loop shares its cores with threads
that decode and run models and finds its caches cold each time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

CONNECTION: Final = "fivecrop.connection"

# A body that declares no more than this is handed over whole. Of another the application sees
# every piece, so that it can stop one that grows over its limit.
_WHOLE_BODY_BYTES: Final = 256 * 1024


class HttpConnection(HttpToolsProtocol):
    """A connection; requests find it in their scope as `CONNECTION`.

    Attributes:
        is_lost: Whether the client, or the server, has closed it.
        on_lost: Called once when that happens, if set.
    """

    is_lost = False
    _is_body_small = False
    on_lost: Callable[[], None] | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends whatever still runs for the client."""
        super().connection_lost(exc)
        self.is_lost = True
        if self.on_lost is not None:
            self.on_lost()

    def on_headers_complete(self) -> None:
        """Starts to answer a request, whose body may still be on its way."""
        declared = next((value for name, value in self.headers if name == b"content-length"), b"")
        self._is_body_small = declared.isdigit() and int(declared) <= _WHOLE_BODY_BYTES
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Takes a piece of a body; of a small one the application hears when it is whole."""
        if not self._is_body_small:
            super().on_body(body)
        elif not self.cycle.response_complete:
            self.cycle.body += body

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: object) -> None:
        cycle.scope[CONNECTION] = self  # type: ignore[typeddict-unknown-key]
        if cycle.scope["method"] != "HEAD":  # its answer has no second write
            cycle.transport = _JoinedWrites(cycle)
        # A pipelined request is begun inside the task of the one before: whose it was, and which
        # key it had, must not pass on.
        Context().run(super()._start_asgi_task, cycle, app)  # type: ignore[arg-type]


class _JoinedWrites(asyncio.Transport):
    """Holds back the head of an answer until its body comes, and writes both at once."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._transport = cycle.transport
        self._head: bytes | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Sends bytes, those held back first."""
        if not self._cycle.response_started:  # 100 Continue
            self._transport.write(data)
        elif self._head is None:
            self._head = bytes(data)
        else:
            self._transport.write(self._head + data)
            self._head = b""

    def close(self) -> None:
        """Closes the connection once everything is sent."""
        if self._head:
            self._transport.write(self._head)
        self._transport.close()

    def is_closing(self) -> bool:
        """Whether the connection is closing or closed."""
        return self._transport.is_closing()
