"""The outermost layer of HTTP: every request enters and every response leaves here.

Routes store an `Answer` in the scope or raise; they never write to the socket. So there is one
place that names a request, measures it, turns an error into a problem document and sends the
bytes, and no exception can leave a client waiting.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NoReturn

from starlette.exceptions import HTTPException
from starlette.routing import Match, Route, Router
from starlette.types import Message, Receive, Scope, Send

from service.access import CREDENTIAL_NAMES, Access, AccessControl
from service.access_log import log_access
from service.errors import ErrorCode, RequestError
from service.http_answer import Answer, ErrorKey, answer_problem
from service.http_client import ClientLeftError
from service.intake import Held, Intake
from service.metrics import Metrics
from service.request_id import take_request_id
from service.traffic import STICKY_KEY

if TYPE_CHECKING:
    from service.tracing import RequestTrace, Tracing

logger = logging.getLogger(__name__)

ANSWER: Final = "fivecrop.answer"
REQUEST_ID: Final = "fivecrop.request_id"
_ERROR_KEY: Final = "fivecrop.error_key"
ACCESS_CONTROL: Final = "fivecrop.access_control"
INTAKE: Final = "fivecrop.intake"

# Probes and scrapes have none, and are answered however much is going on.
_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})

_CREDENTIAL_NAMES: Final = frozenset(name.encode() for name in CREDENTIAL_NAMES)

_SINGLE: Final = (
    b"host",
    b"content-length",
    b"content-type",
    b"content-encoding",
    b"transfer-encoding",
    b"inference-header-content-length",
    b"x-request-id",
    b"x-request-timeout-ms",
)

# How long a refused upload is still read and thrown away, so that the client, which is busy
# sending, gets to see the answer instead of a reset connection (RFC 9112, section 9.6).
LINGER_S: Final = 2.0

# Nobody reads this answer; the layers outside still want one. 499 is nginx's code for it.
_CLIENT_LEFT: Final = Answer(body=b"", status=499)


Handler = Callable[[Scope, Receive], Awaitable[Answer]]


class Endpoint:
    """An ASGI route around `answer(scope, receive) -> Answer`, for those who may have it.

    The only kind of route there is: whatever else is put into the table has nothing to send with,
    so a route that nobody declared an access for cannot answer.
    """

    __slots__ = ("_answer", "_error_key", "access")

    def __init__(
        self, answer: Handler, access: Access, *, error_key: ErrorKey | None = None
    ) -> None:
        """Makes the route; clients of another server read an error's text under its own key."""
        self._answer = answer
        self.access = access
        self._error_key = error_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Leaves the answer in the scope for the edge to send.

        Raises:
            RequestError: `unauthenticated` or `forbidden`, before anything of the body is read.
        """
        scope[_ERROR_KEY] = self._error_key
        control: AccessControl = scope[ACCESS_CONTROL]
        if control.needs_key(self.access):
            control.admit(self.access, _read_credentials(scope))
        if scope["method"] in _WITH_BODY:
            _refuse_repeated(scope["headers"])
            intake: Intake = scope[INTAKE]
            with intake.admit() as held:
                scope[ANSWER] = await self._answer(scope, _Counted(receive, held))
        else:
            scope[ANSWER] = await self._answer(scope, receive)


def _refuse_repeated(headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Refuses two values where a proxy in front may have taken the other one."""
    names = [name for name, _ in headers]
    if len(set(names)) != len(names) and any(names.count(name) > 1 for name in _SINGLE):
        raise RequestError(ErrorCode.INVALID_ARGUMENT, "a header is given twice")


class _Counted:
    """Receives what another receives, and counts its bytes."""

    __slots__ = ("_held", "_receive")

    def __init__(self, receive: Receive, held: Held) -> None:
        self._receive = receive
        self._held = held

    async def __call__(self) -> Message:
        message = await self._receive()
        self._held.add(len(message.get("body", b"")))
        return message


class HttpEdge:
    """Names, measures, answers and logs each HTTP request.

    Attributes:
        router: The routes; each is an `Endpoint`.
    """

    def __init__(
        self,
        router: Router,
        metrics: Metrics,
        control: AccessControl,
        intake: Intake,
        *,
        has_access_log: bool,
        sticky_header: str = "",
        tracing: Tracing | None = None,
    ) -> None:
        self.router = router
        self._sticky_header = sticky_header.encode()
        self._metrics = metrics
        self._control = control
        self._intake = intake
        self._has_access_log = has_access_log
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request; other scopes (lifespan, websocket) go to the routes unchanged."""
        if scope["type"] != "http":
            await self.router(scope, receive, send)
            return
        started = time.perf_counter()
        # A copy, because a server around this one has its own route and application in there;
        # with an application, Starlette raises for a 405 instead of writing its own text.
        scope = {
            **scope,
            "app": self,
            "route": None,
            ACCESS_CONTROL: self._control,
            INTAKE: self._intake,
        }
        request_id = scope[REQUEST_ID] = take_request_id(self._read_identity(scope))
        trace_id = span = None
        # A GET here is a probe, a scrape or somebody looking around.
        if self._tracing is not None and scope["method"] != "GET":
            span = self._tracing.begin(_read_trace_headers(scope))
        if span is None:
            answer, code = await self._answer(scope, receive)
        else:
            with span as told:
                answer, code = await self._answer(scope, receive)
                _tell_trace(told, scope, answer, code)
            trace_id = told.trace_id
        self._record(scope, answer, code, time.perf_counter() - started, trace_id)
        await send(answer.start_message(request_id))
        has_unread_body = code == ErrorCode.BODY_TOO_LARGE
        await send(
            {"type": "http.response.body", "body": answer.body, "more_body": has_unread_body}
        )
        if has_unread_body:
            await _linger(receive)
            await send({"type": "http.response.body", "body": b""})

    def _read_identity(self, scope: Scope) -> str | None:
        """Returns the id that the client gave the request, and notes whose it is."""
        request_id = None
        for name, value in scope["headers"]:
            if name == b"x-request-id" and request_id is None:
                request_id = str(value, "latin-1")
            elif name == self._sticky_header:
                STICKY_KEY.set(value)
        return request_id

    async def _answer(self, scope: Scope, receive: Receive) -> tuple[Answer, str]:
        """Returns the answer of the routes, or the one that their error maps to, and its code."""
        headers: tuple[tuple[bytes, bytes], ...] = ()
        try:
            await self.router(scope, receive, _send_nothing)
            return scope[ANSWER], "ok"
        except ClientLeftError:
            return _CLIENT_LEFT, "cancelled"
        except RequestError as refused:
            error = refused
        except HTTPException:
            error, headers = _refuse_method(self.router, scope)
        except Exception:  # whatever nobody foresaw
            logger.exception("unexpected error, request %s", scope[REQUEST_ID])
            error = RequestError(ErrorCode.INTERNAL, "something went wrong inside the service")
        # Clients of the Open Inference Protocol read it even where no route is.
        default: ErrorKey | None = "error" if scope["path"].startswith("/v2") else None
        error_key = scope.get(_ERROR_KEY, default)
        answer = answer_problem(error, scope[REQUEST_ID], headers, error_key)
        return answer, error.code.value

    def _record(
        self, scope: Scope, answer: Answer, code: str, seconds: float, trace_id: str | None
    ) -> None:
        route = _read_route(scope)
        self._metrics.observe_request(
            transport="http", route=route, code=code, seconds=seconds, trace_id=trace_id
        )
        if self._has_access_log:
            log_access(
                transport="http",
                route=f"{scope['method']} {route}",
                status=answer.status,
                code=code,
                seconds=seconds,
                request_id=scope[REQUEST_ID],
                results=answer.results,
                trace_id=trace_id,
            )


async def _send_nothing(message: Message) -> NoReturn:
    raise RuntimeError(f"a route leaves its answer to the edge; this one sent {message['type']}")


def _read_credentials(scope: Scope) -> list[tuple[str, str]]:
    return [
        (str(name, "ascii"), str(value, "latin-1"))
        for name, value in scope["headers"]
        if name in _CREDENTIAL_NAMES
    ]


def _read_route(scope: Scope) -> str:
    """Returns the template, or one constant: a label per unknown path would never end."""
    route: str = getattr(scope["route"], "path", "unmatched")
    return route


def _read_trace_headers(scope: Scope) -> dict[str, str]:
    return {
        name.decode("ascii"): value.decode("latin-1")
        for name, value in scope["headers"]
        if name in (b"traceparent", b"tracestate")
    }


def _tell_trace(told: RequestTrace, scope: Scope, answer: Answer, code: str) -> None:
    """Names and describes the span by OpenTelemetry's conventions for HTTP servers."""
    route = _read_route(scope)
    told.name = f"{scope['method']} {route}"
    told.is_failed = answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR
    told.attributes |= {
        "http.request.method": scope["method"],
        "http.route": route,
        "http.response.status_code": answer.status,
        "fivecrop.code": code,
        "fivecrop.request_id": scope[REQUEST_ID],
    }


def _refuse_method(
    router: Router, scope: Scope
) -> tuple[RequestError, tuple[tuple[bytes, bytes], ...]]:
    """Returns our form of the error that Starlette's routing raises, which is always a 405.

    Starlette names the methods of the first route of a path; another may have more.
    """
    found = [
        route
        for route in router.routes
        if isinstance(route, Route) and route.matches(scope)[0] is Match.PARTIAL
    ]
    methods = [route.methods or set() for route in found if route.path == found[0].path]
    allow = ", ".join(sorted(set[str]().union(*methods)))
    error = RequestError(ErrorCode.METHOD_NOT_ALLOWED, f"this path answers {allow}")
    return error, ((b"allow", allow.encode("ascii")),)


async def _linger(receive: Receive) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while (await receive()).get("more_body", False):
                pass
