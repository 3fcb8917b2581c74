"""One gRPC call, from its metadata to its status: what every servicer does around its work."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Never, TypeVar

import grpc
from grpc.aio import ServicerContext

from service.access_log import Result, log_access
from service.classification import Classification, Explanation
from service.errors import ErrorCode, RequestError
from service.grpc_answer import DETAILS_KEY, STATUS, encode_details
from service.grpc_guard import begin
from service.metrics import Metrics
from service.open_inference_messages import InferResponse
from service.request_id import HEADER, take_request_id
from service.settings import Settings
from service.time_limit import TimeLimit
from service.traffic import STICKY_KEY

if TYPE_CHECKING:
    from service.tracing import RequestTrace, Tracing

logger = logging.getLogger(__name__)

_SERVER_FAULTS: Final = frozenset(
    {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
)

Context = ServicerContext[Any, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What is known of a call before its message is looked at."""

    route: str
    request_id: str
    timeout_ms: float | None
    metadata: Sequence[tuple[str, str | bytes]]

    def trace_headers(self) -> dict[str, str]:
        """Returns what the client says of its trace."""
        return {
            name: value
            for name, value in self.metadata
            if name in ("traceparent", "tracestate") and isinstance(value, str)
        }


class Calls:
    """Opens, measures, traces, logs and refuses the calls of one service."""

    def __init__(
        self, service: str, metrics: Metrics, settings: Settings, tracing: Tracing | None
    ) -> None:
        """Takes the full name of the service."""
        self._service = service
        self._metrics = metrics
        self._has_access_log = settings.access_log
        self._write_limit = TimeLimit(settings.write_timeout_s)
        self._sticky_header = settings.sticky_header
        self._tracing = tracing

    def open(self, context: Context, method: str) -> Call:
        """Returns the call, having promised its id to the client."""
        metadata = tuple(context.invocation_metadata() or ())
        offered = None
        for name, value in metadata:
            if name == HEADER and offered is None:
                offered = value
            elif name == self._sticky_header:
                STICKY_KEY.set(value.encode() if isinstance(value, str) else value)
        request_id = take_request_id(offered if isinstance(offered, str) else None)
        context.set_trailing_metadata(((HEADER, request_id),))
        return Call(
            route=f"/{self._service}/{method}",
            request_id=request_id,
            timeout_ms=time_left_ms(context),
            metadata=metadata,
        )

    async def answer(self, call: Call, context: Context, work: Awaitable[T]) -> T:
        """Returns what `work` does, or aborts the call with the error that it raises."""
        try:
            return await self.measure(call, work)
        except RequestError as error:
            await abort(context, call, error)

    async def stream(
        self, call: Call, context: Context, work: Callable[[Answers], Awaitable[None]]
    ) -> None:
        """Does the work of a stream; the first error of its task group ends the call."""
        answers = Answers(context, self._write_limit, self._metrics)
        failure: BaseException | None = None
        try:
            await work(answers)
        except* RequestError as refused:
            failure = refused.exceptions[0]
        if isinstance(failure, RequestError):
            await answers.finish()
            await abort(context, call, failure)

    async def measure(self, call: Call, work: Awaitable[T]) -> T:
        """Returns what `work` does; counts and traces it."""
        span = None if self._tracing is None else self._tracing.begin(call.trace_headers())
        if span is None:
            return await self._account(call, work, None)
        with span as told:
            return await self._account(call, work, told)

    async def _account(self, call: Call, work: Awaitable[T], told: RequestTrace | None) -> T:
        """Returns what `work` does; counts it; turns what nobody foresaw into `internal`."""
        started = time.perf_counter()
        code = "cancelled"
        result: T | None = None
        try:
            with self._metrics.track_inflight("grpc"):
                result = await work
            code = "ok"
        except RequestError as error:
            code = error.code.value
            raise
        except Exception as cause:
            code = ErrorCode.INTERNAL.value
            logger.exception("unexpected error, request %s", call.request_id)
            raise RequestError(
                ErrorCode.INTERNAL, "something went wrong inside the service"
            ) from cause
        else:
            return result
        finally:
            self._record(call, code, time.perf_counter() - started, result, told)

    def _record(
        self, call: Call, code: str, seconds: float, result: object, told: RequestTrace | None
    ) -> None:
        trace_id = None
        if told is not None:
            _tell_trace(told, call, code)
            trace_id = told.trace_id
        self._metrics.observe_request(
            transport="grpc", route=call.route, code=code, seconds=seconds, trace_id=trace_id
        )
        if self._has_access_log:
            log_access(
                transport="grpc",
                route=call.route,
                status=_find_status(code).name,
                code=code,
                seconds=seconds,
                request_id=call.request_id,
                results=_read_results(result),
                trace_id=trace_id,
            )


class Answers:
    """What a stream sends: one message at a time, to a client that reads them."""

    def __init__(self, context: Context, limit: TimeLimit, metrics: Metrics) -> None:
        self._context = context
        self._limit = limit
        self._metrics = metrics
        self._turn = asyncio.Lock()  # the library takes one write at a time
        self._writing: asyncio.Future[None] | None = None
        self._is_stuck = False

    async def write(self, message: object) -> None:
        """Sends a message.

        Raises:
            RequestError: `request_timeout`: the client does not read, and what its stream holds
                is needed for others. It is told when it reads on.
        """
        async with self._turn:
            if not self._is_stuck:
                self._writing = begin(self._context.write(message))
                try:
                    with self._limit.start():
                        return await asyncio.shield(self._writing)
                except TimeoutError:
                    self._is_stuck = True
                    self._metrics.count_cut_off("slow_reader")
        raise RequestError(ErrorCode.REQUEST_TIMEOUT, "the answers were not read in time")

    async def finish(self) -> None:
        """Returns when no message is on its way any more; before that there can be no status.

        With one on its way the library fails to send a status, and the client would wait for ever.
        """
        if self._writing is not None:
            await asyncio.wait([self._writing])


def _tell_trace(told: RequestTrace, call: Call, code: str) -> None:
    """Names and describes the span by OpenTelemetry's conventions for gRPC servers."""
    service, method = call.route[1:].split("/")
    told.name = call.route[1:]
    status = _find_status(code)
    told.is_failed = status in _SERVER_FAULTS
    told.attributes |= {
        "rpc.system": "grpc",
        "rpc.service": service,
        "rpc.method": method,
        "rpc.grpc.status_code": status.value[0],
        "fivecrop.code": code,
        "fivecrop.request_id": call.request_id,
    }


def _read_results(result: object) -> Sequence[Result]:
    """Returns what became of the images of a call, if it had any and was answered."""
    if isinstance(result, InferResponse):
        return result.results
    return (result,) if isinstance(result, Classification | Explanation) else ()


def _find_status(code: str) -> grpc.StatusCode:
    if code in ("ok", "cancelled"):
        return grpc.StatusCode[code.upper()]
    return STATUS[ErrorCode(code)]


def time_left_ms(context: Context) -> float | None:
    """Returns what is left of the deadline of a call; None when it has none."""
    left_s: float | None = context.time_remaining()
    return None if left_s is None else left_s * 1000


async def abort(context: Context, call: Call, error: RequestError) -> Never:
    """Ends a call with the status, the code and the text of an error."""
    await context.abort(
        STATUS[error.code],
        error.detail,
        ((HEADER, call.request_id), (DETAILS_KEY, encode_details(error))),
    )
