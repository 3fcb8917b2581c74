"""Bytes that are no message: the client's fault, which the library would tell as the server's.

When a deserializer raises, grpc.aio answers UNKNOWN with the text of the exception, and no servicer
hears of it.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from grpc.aio import ServicerContext

Context = ServicerContext[Any, Any]
Refuse = Callable[[Context], Awaitable[None]]

_MALFORMED: Final = object()


def refuse_malformed(
    handler: grpc.RpcMethodHandler[Any, Any], refuse: Refuse
) -> grpc.RpcMethodHandler[Any, Any]:
    """Returns the handler of a method with `refuse` for messages that cannot be parsed.

    What a stream sent before such a message is still answered.
    """
    read = handler.request_deserializer
    assert read is not None
    parse = _parse_with(read)
    write = handler.response_serializer
    if handler.stream_stream is not None:
        behaviour = _guard_stream(handler.stream_stream, refuse)
        return grpc.stream_stream_rpc_method_handler(behaviour, parse, write)
    if handler.unary_stream is not None:
        behaviour = _guard_unary(handler.unary_stream, refuse)
        return grpc.unary_stream_rpc_method_handler(behaviour, parse, write)
    behaviour = _guard_unary(handler.unary_unary, refuse)
    return grpc.unary_unary_rpc_method_handler(behaviour, parse, write)


def _parse_with(read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def parse(data: bytes) -> Any:
        try:
            return read(data)
        except DecodeError:
            return _MALFORMED

    return parse


def _guard_unary(behaviour: Any, refuse: Refuse) -> Any:
    async def guarded(request: Any, context: Context) -> Any:
        if request is _MALFORMED:
            await refuse(context)
        return await behaviour(request, context)

    return guarded


def _guard_stream(behaviour: Any, refuse: Refuse) -> Any:
    async def guarded(requests: AsyncIterator[Any], context: Context) -> None:
        messages = _Messages(requests)
        await behaviour(messages, context)
        if messages.has_malformed:
            await refuse(context)

    async def guarded_generator(
        requests: AsyncIterator[Any], context: Context
    ) -> AsyncIterator[Any]:
        messages = _Messages(requests)
        async for answer in behaviour(messages, context):
            yield answer
        if messages.has_malformed:
            await refuse(context)

    return guarded_generator if inspect.isasyncgenfunction(behaviour) else guarded


class _Messages:
    """What a client streams, up to what is no message."""

    def __init__(self, requests: AsyncIterator[Any]) -> None:
        self._requests = aiter(requests)
        self.has_malformed = False

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        message = await anext(self._requests)
        if message is _MALFORMED:
            self.has_malformed = True
            raise StopAsyncIteration
        return message
