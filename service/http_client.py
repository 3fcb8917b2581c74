"""The client at the other end of an HTTP request: whether it is still there."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from starlette.types import Receive, Scope

from service.http_protocol import CONNECTION, HttpConnection


class ClientLeftError(Exception):
    """The client closed its connection before the answer."""


class ClientWatch:
    """Cancels the work inside `with` when the client leaves, so that nothing is computed for it.

    The request's body must have been read to its end. Our own connections then tell by a call; of
    another server's the next message is the disconnect, and a task waits for it.

    Raises:
        ClientLeftError: Instead of the cancellation, which then ends here.
    """

    __slots__ = ("_connection", "_has_left", "_receive", "_task", "_watcher")

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._connection: HttpConnection | None = scope.get(CONNECTION)
        self._receive = receive
        self._has_left = False

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("ClientWatch needs a running task")
        self._task = task
        if self._connection is None:
            self._watcher = asyncio.create_task(self._wait())
        elif self._connection.is_lost:
            self._leave()
        else:
            self._connection.on_lost = self._leave
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._connection is None:
            self._watcher.cancel()
        else:
            self._connection.on_lost = None
        if self._has_left and kind is asyncio.CancelledError:
            self._task.uncancel()
            raise ClientLeftError from error

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._leave()

    def _leave(self) -> None:
        self._has_left = True
        self._task.cancel()
