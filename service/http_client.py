"""The client at the other end of an HTTP request: whether it is still there."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from starlette.types import Receive


class ClientLeftError(Exception):
    """The client closed its connection before the answer."""


class ClientWatch:
    """Cancels the work inside `with` when the client leaves, so that nothing is computed for it.

    The request's body must have been read to its end: the next message is then the disconnect.

    Raises:
        ClientLeftError: Instead of the cancellation, which then ends here.
    """

    __slots__ = ("_has_left", "_receive", "_task", "_watcher")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._has_left = False

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("ClientWatch needs a running task")
        self._task = task
        self._watcher = asyncio.create_task(self._wait())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._watcher.cancel()
        if self._has_left and kind is asyncio.CancelledError:
            self._task.uncancel()
            raise ClientLeftError from error

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._has_left = True
        self._task.cancel()
