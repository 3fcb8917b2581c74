"""One HTTP connection, and what its client may do to hold it: nothing for long.

uvicorn limits neither the time nor the size of a request's head, and waits for ever for a client
that does not read. Its protocol is extended here through the methods that asyncio calls, so an
answered request costs two calls more, and timers are only set when something is not there yet.
`service/http_body.py` limits the body.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from service.errors import ErrorCode, RequestError
from service.http_answer import answer_problem
from service.http_protocol import HttpConnection
from service.metrics import Metrics
from service.request_id import take_request_id

# What a header costs on the wire beside its name and value: a colon, a blank and a line end.
_HEADER_OVERHEAD_BYTES: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """How long, in seconds, and how large the head of a request, and how long a pause in reading.

    `rest_s` is for what a client goes on sending after its answer.
    """

    head_s: float
    head_bytes: int
    rest_s: float
    write_s: float


class TimedConnection(HttpConnection):
    """A connection with an end to slow heads, large heads and slow readers."""

    def __init__(self, *, limits: ConnectionLimits, metrics: Metrics, **host: Any) -> None:
        """Makes the protocol of one connection.

        Args:
            limits: Of the connection.
            metrics: Where the connections that are cut off are counted.
            host: What uvicorn gives its own protocol.
        """
        super().__init__(**host)
        self._limits = limits
        self._metrics = metrics
        self._head_bytes = 0
        self._read_timer: asyncio.TimerHandle | None = None
        self._is_timing_head = False
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Gives the first request's head its time."""
        super().connection_made(transport)
        self._time_reading(is_head=True)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the timers."""
        self._stop_read_timer()
        self._stop_write_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Times what no request's work waits for: a head, or what follows an answered request."""
        super().data_received(data)
        cycle = self.cycle
        is_in_head = cycle is None or cycle.scope is not self.scope
        if not is_in_head and not cycle.response_complete:
            if len(data) + self._head_bytes > self._limits.head_bytes:
                self._check_whole_head(data)
            if self._read_timer is not None:
                self._stop_read_timer()
        elif not self.transport.is_closing():
            if is_in_head:
                self._head_bytes += len(data)
                if self._head_bytes > self._limits.head_bytes:
                    self._refuse_large_head()
                    return
            if self._read_timer is None or self._is_timing_head is not is_in_head:
                self._time_reading(is_head=is_in_head)

    def on_response_complete(self) -> None:
        """Gives the client its time to read an answer that ends the connection."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._time_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Ends an idle connection, even if the client has not read its last answer."""
        super().timeout_keep_alive_handler()
        self._time_writing()

    def shutdown(self) -> None:
        """Ends the connection after the answer in the making."""
        super().shutdown()
        if self.transport.is_closing():
            self._time_writing()

    def pause_writing(self) -> None:
        """Gives the client its time to read, because more is unread than shall be held for it."""
        super().pause_writing()
        self._time_writing()

    def resume_writing(self) -> None:
        """Ends that time."""
        super().resume_writing()
        if not self.transport.is_closing():
            self._stop_write_timer()

    def send_400_response(self, msg: str) -> None:
        """Refuses what is not HTTP, in our words."""
        del msg
        if self.cycle is not None and self.cycle.more_body and not self.cycle.response_started:
            self._disown_work()  # it waits for the rest of a body whose chunks make no sense
        self._refuse(
            RequestError(ErrorCode.INVALID_ARGUMENT, "this is not an HTTP request"), "not_http"
        )

    def _check_whole_head(self, data: bytes) -> None:
        """Refuses a head that came whole, with its body perhaps, and is too large."""
        if not self._head_bytes and data.find(b"\r\n\r\n", 0, self._limits.head_bytes) > 0:
            return  # it is the body that makes it so much
        head_bytes = len(self.url) + sum(
            len(name) + len(value) + _HEADER_OVERHEAD_BYTES for name, value in self.headers
        )
        if head_bytes > self._limits.head_bytes:
            self._disown_work()
            self._refuse_large_head()

    def _disown_work(self) -> None:
        """Lets a request's work find nobody there, as uvicorn does when a client leaves."""
        self.cycle.disconnected = True
        self.cycle.message_event.set()

    def _refuse_large_head(self) -> None:
        limit = self._limits.head_bytes
        self._refuse(
            RequestError(ErrorCode.HEADERS_TOO_LARGE, f"the headers are larger than {limit} bytes"),
            "large_head",
        )

    def _time_reading(self, *, is_head: bool) -> None:
        self._stop_read_timer()
        self._is_timing_head = is_head
        seconds = self._limits.head_s if is_head else self._limits.rest_s
        self._read_timer = self.loop.call_later(seconds, self._give_up_reading)

    def _give_up_reading(self) -> None:
        self._read_timer = None
        if self.cycle is not None and not self.cycle.response_complete:
            # An earlier request of the same connection is still at work: it comes first.
            self._time_reading(is_head=self._is_timing_head)
        elif self.scope is None or not self._is_timing_head:
            # Nothing was asked, so there is nothing to answer.
            self._metrics.count_cut_off("slow_request")
            self.transport.close()
            self._time_writing()
        else:
            self._refuse(
                RequestError(ErrorCode.REQUEST_TIMEOUT, "the headers did not arrive in time"),
                "slow_request",
            )

    def _refuse(self, error: RequestError, reason: str) -> None:
        """Answers with a problem document, unless another answer is in the making, and ends."""
        self._metrics.count_cut_off(reason)
        self._stop_read_timer()
        is_answering = self.cycle is not None and not (
            self.cycle.response_complete or self.cycle.disconnected
        )
        if not is_answering and not self.transport.is_closing():
            self.transport.write(_encode_refusal(error))
        self.transport.close()
        self._time_writing()

    def _time_writing(self) -> None:
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self._limits.write_s, self._give_up_writing)

    def _give_up_writing(self) -> None:
        self._write_timer = None
        self._metrics.count_cut_off("slow_reader")
        self.transport.abort()

    def _stop_read_timer(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None
        self._head_bytes = 0

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None


def _encode_refusal(error: RequestError) -> bytes:
    answer = answer_problem(error, request_id := take_request_id(None))
    headers = dict(answer.start_message(request_id)["headers"]) | {b"connection": b"close"}
    head = b"".join(b"%s: %s\r\n" % pair for pair in headers.items())
    phrase = HTTPStatus(answer.status).phrase.encode()
    return b"HTTP/1.1 %d %s\r\n%s\r\n%s" % (answer.status, phrase, head, answer.body)
