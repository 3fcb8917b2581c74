"""What a method is guarded with: the library tells clients the text of whatever is raised.

grpc.aio answers UNKNOWN, with the type and the text of the exception, when a deserializer raises,
of which no servicer hears, and when a servicer raises what it did not foresee.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, Never, TypeVar

import grpc
from google.protobuf.message import DecodeError
from grpc.aio import EOF, AbortError, ServicerContext

from service.errors import ErrorCode, RequestError
from service.time_limit import TimeLimit

Context = ServicerContext[Any, Any]
Refuse = Callable[[Context, RequestError], Awaitable[Never]]
T = TypeVar("T")

_NO_MESSAGE: Final = object()
_MALFORMED: Final = RequestError(
    ErrorCode.INVALID_ARGUMENT, "the message is not one of this method"
)

_SLOW: Final = RequestError(ErrorCode.REQUEST_TIMEOUT, "the message did not arrive in time")


def guard(
    handler: grpc.RpcMethodHandler[Any, Any], refuse: Refuse, limit: TimeLimit
) -> grpc.RpcMethodHandler[Any, Any]:
    """Returns the handler of a method with `refuse` for what it does not foresee.

    That are messages that cannot be parsed, or do not arrive in time where there is one, and
    errors. What a stream sent before such a message is still answered.
    """
    read = handler.request_deserializer
    assert read is not None
    parse = _parse_with(read)
    write = handler.response_serializer
    if handler.stream_stream is not None:
        behaviour = _guard_stream(handler.stream_stream, refuse)
        return grpc.stream_stream_rpc_method_handler(behaviour, parse, write)
    # The library hands over a single message once it is whole, and waits for it without end. The
    # bytes on the wire are the same for a stream of one, which is read here.
    if handler.unary_stream is not None:
        behaviour = _guard_unary(handler.unary_stream, refuse, limit)
        return grpc.stream_stream_rpc_method_handler(behaviour, parse, write)
    behaviour = _guard_unary(handler.unary_unary, refuse, limit)
    return grpc.stream_unary_rpc_method_handler(behaviour, parse, write)


def begin(work: Awaitable[T]) -> asyncio.Future[T]:
    """Returns a read or a write of the library, to be awaited through `asyncio.shield`.

    It ends by itself, whoever still waits for it: a message whose read is cancelled is never freed,
    and what the library has begun to send it goes on sending.
    """
    begun = asyncio.ensure_future(work)
    begun.add_done_callback(_forget_error)
    return begun


def _forget_error(ended: asyncio.Future[Any]) -> None:
    """Lets the error be that of whoever waits, if anybody still does."""
    if not ended.cancelled():
        ended.exception()


def _parse_with(read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def parse(data: bytes) -> Any:
        try:
            return read(data)
        except DecodeError:
            return _NO_MESSAGE

    return parse


def _guard_unary(behaviour: Any, refuse: Refuse, limit: TimeLimit) -> Any:
    async def guarded(_requests: AsyncIterator[Any], context: Context) -> Any:
        try:
            with limit.start():
                request = await asyncio.shield(begin(context.read()))
        except TimeoutError:
            await refuse(context, _SLOW)
        if request is _NO_MESSAGE or request is EOF:
            await refuse(context, _MALFORMED)
        try:
            return await behaviour(request, context)
        except AbortError:
            raise
        except Exception as error:  # noqa: BLE001 - told by `refuse`
            await refuse(context, _unforeseen(error))

    return guarded


def _guard_stream(behaviour: Any, refuse: Refuse) -> Any:
    @asynccontextmanager
    async def reading(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[_Messages]:
        messages = _Messages(requests)
        try:
            yield messages
        except AbortError:
            raise
        except Exception as error:  # noqa: BLE001 - told by `refuse`
            await refuse(context, _unforeseen(error))
        if messages.has_malformed:
            await refuse(context, _MALFORMED)

    async def guarded(requests: AsyncIterator[Any], context: Context) -> None:
        async with reading(requests, context) as messages:
            await behaviour(messages, context)

    async def guarded_generator(
        requests: AsyncIterator[Any], context: Context
    ) -> AsyncIterator[Any]:
        async with reading(requests, context) as messages:
            async for answer in behaviour(messages, context):
                yield answer

    return guarded_generator if inspect.isasyncgenfunction(behaviour) else guarded


def _unforeseen(cause: Exception) -> RequestError:
    error = RequestError(ErrorCode.INTERNAL, "something went wrong inside the service")
    error.__cause__ = cause
    return error


class _Messages:
    """What a client streams, up to what is no message."""

    def __init__(self, requests: AsyncIterator[Any]) -> None:
        self._requests = aiter(requests)
        self.has_malformed = False

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        message = await anext(self._requests)
        if message is _NO_MESSAGE:
            self.has_malformed = True
            raise StopAsyncIteration
        return message
