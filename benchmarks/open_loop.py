"""Load that does not wait for answers: requests leave at Poisson times, whatever the server does.

Started as ``python -m benchmarks.open_loop PLAN`` with a JSON plan; prints a line of JSON. A closed
loop slows down with the server and so never sees an overload. Here latency counts from the time at
which a request was to be sent (no coordinated omission), how late it was really sent is reported,
and a request for which no connection was left counts as not answered. Count, time and connections
are bounded by the plan.

With ``"rate": null`` the same client runs a closed loop over ``connections``, for the peak.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import uvloop

from benchmarks.servers import encode_form

# After the last request, answers may still come for the deadline and this long.
PATIENCE_S = 2.0
_MAX_REQUESTS = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to send where: ``rate`` a second for ``seconds``, each with a deadline.

    ``form_field`` is the field of a multipart form, or ``raw``.
    """

    port: int
    path: str
    form_field: str
    listing: str
    rate: float | None
    seconds: float
    timeout_ms: float
    connections: int
    seed: int


@dataclass(slots=True, kw_only=True)
class Tally:
    """What came back, by the second that each request was meant for; times in milliseconds."""

    good: list[tuple[float, float]] = field(default_factory=list)
    late: list[tuple[float, float]] = field(default_factory=list)
    rejected: list[tuple[float, float]] = field(default_factory=list)
    failed: list[float] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)
    lags_ms: list[float] = field(default_factory=list)
    retry_after_s: list[int] = field(default_factory=list)


class Client:
    """Sends on a pool of connections and tallies the answers."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._requests = [
            _request(plan, Path(line).read_bytes())
            for line in Path(plan.listing).read_text().splitlines()
        ]
        self._sent = 0
        self._idle: deque[_Connection] = deque()
        self._open = 0
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._is_over = False
        self._in_flight: set[float] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.tally = Tally()

    async def run(self) -> None:
        """Returns when the plan is over and the answers are in, or waited for long enough."""
        plan = self._plan
        for _ in range(plan.connections if plan.rate is None else 32):
            await self._connect()
        self._started = self._loop.time()
        if plan.rate is None:
            while self._idle:
                self._send(self._loop.time())
            await asyncio.sleep(plan.seconds)
            self._is_over = True
            return
        generator = np.random.default_rng(plan.seed)
        gaps = generator.exponential(
            1 / plan.rate, min(_MAX_REQUESTS, int(2 * plan.rate * plan.seconds) + 100)
        )
        for at in self._started + np.cumsum(gaps):
            if at > self._started + plan.seconds:
                break
            if (wait_s := at - self._loop.time()) > 0:
                await asyncio.sleep(wait_s)
            elif self._sent % 16 == 0:
                await asyncio.sleep(0)  # behind: answers are still to be read
            self._send(at)
        self._is_over = True
        ends = self._loop.time() + plan.timeout_ms / 1000 + PATIENCE_S
        while self._in_flight and self._loop.time() < ends:
            await asyncio.sleep(0.02)
        self.tally.failed += [meant - self._started for meant in self._in_flight]

    def answered(self, connection: _Connection, status: int, retry_after_s: int | None) -> None:
        """Tallies an answer and lets its connection carry the next request."""
        meant = connection.meant
        self._in_flight.discard(meant)
        ms = (self._loop.time() - meant) * 1000
        entry = (meant - self._started, ms)
        tally = self.tally
        tally.statuses[str(status)] = tally.statuses.get(str(status), 0) + 1
        if status == 200:
            (tally.good if ms <= self._plan.timeout_ms else tally.late).append(entry)
        elif status in (429, 503):
            tally.rejected.append(entry)
            if retry_after_s is not None:
                tally.retry_after_s.append(retry_after_s)
        else:
            tally.late.append(entry)
        self._idle.append(connection)
        if self._plan.rate is None and not self._is_over:
            self._send(self._loop.time())

    def lost(self, connection: _Connection) -> None:
        """Forgets a connection; what it carried has failed."""
        self._open -= 1
        if connection in self._idle:
            self._idle.remove(connection)
        elif connection.meant in self._in_flight:
            self._fail(connection.meant)

    def _fail(self, meant: float) -> None:
        self._in_flight.discard(meant)
        self.tally.failed.append(meant - self._started)

    def _send(self, meant: float) -> None:
        request = self._requests[self._sent % len(self._requests)]
        self._sent += 1
        self._in_flight.add(meant)
        if self._idle:
            self.tally.lags_ms.append((self._loop.time() - meant) * 1000)
            self._idle.pop().send(request, meant)
        elif self._open < self._plan.connections:
            task = asyncio.ensure_future(self._connect_and_send(request, meant))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._fail(meant)

    async def _connect_and_send(self, request: bytes, meant: float) -> None:
        try:
            await self._connect()
        except OSError:
            self._fail(meant)
            return
        self.tally.lags_ms.append((self._loop.time() - meant) * 1000)
        self._idle.pop().send(request, meant)

    async def _connect(self) -> None:
        self._open += 1
        try:
            _, connection = await self._loop.create_connection(
                lambda: _Connection(self), "127.0.0.1", self._plan.port
            )
        except OSError:
            self._open -= 1
            raise
        self._idle.append(connection)


class _Connection(asyncio.Protocol):
    """One HTTP/1.1 connection with at most one request under way."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._received = b""
        self.meant = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, _: Exception | None) -> None:
        self._client.lost(self)

    def send(self, request: bytes, meant: float) -> None:
        self.meant = meant
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._received[:end].lower()
        body_bytes = int(_header(head, b"content-length") or 0)
        if len(self._received) < end + 4 + body_bytes:
            return
        self._received = b""
        retry_after = _header(head, b"retry-after")
        self._client.answered(self, int(head[9:12]), int(retry_after) if retry_after else None)


def _header(head: bytes, name: bytes) -> bytes | None:
    start = head.find(b"\r\n" + name + b":")
    if start < 0:
        return None
    start += len(name) + 3
    end = head.find(b"\r\n", start)
    return head[start : end if end >= 0 else len(head)].strip()


def _request(plan: Plan, body: bytes) -> bytes:
    content_type = "image/jpeg"
    if plan.form_field != "raw":
        content_type, body = encode_form(plan.form_field, body)
    head = (
        f"POST {plan.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {content_type}\r\n"
        f"X-Request-Timeout-Ms: {plan.timeout_ms:g}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _drive(plan: Plan) -> dict[str, object]:
    cpu_started = time.process_time()
    client = Client(plan)
    await client.run()
    return {
        **asdict(client.tally),
        "sent": client._sent,
        "seconds": plan.seconds,
        "cpu_seconds": time.process_time() - cpu_started,
    }


def main() -> None:
    """Runs the plan on the command line and prints what came of it."""
    plan = Plan(**json.loads(sys.argv[1]))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print("JSON " + json.dumps(runner.run(_drive(plan))))


if __name__ == "__main__":
    main()
