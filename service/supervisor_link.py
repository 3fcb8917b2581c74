"""The socket between `fivecrop serve` and each of its workers.

A worker writes `ready` once, or `failed` and why. After that both ends speak as `relay` tells, of
changes of the models. Each end sees the other one die as the end of the stream, at once and
without polling.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import Final, NoReturn

from service.relay import CHANGE, FOLLOW, FOLLOWED, NO, NO_TOKEN, SETTLED, YES

READY: Final = b"ready\n"
FAILED: Final = b"failed "

_EXIT_FAILED: Final = 2
_NO_VERSIONS: Final = "-"

# Serves what the repository and the orders say now of a model (None: of all); returns the versions.
Follow = Callable[[str | None], Awaitable[Collection[int]]]

logger = logging.getLogger(__name__)


class SupervisorLink:
    """The worker's end. Without a supervisor (`bentoml serve`) it reports to standard error."""

    def __init__(self, fd: int | None) -> None:
        self._socket = None if fd is None else socket.socket(fileno=fd)
        self._tokens = (f"{os.getpid()}-{number}" for number in itertools.count())
        self._waiting: dict[str, asyncio.Future[bool]] = {}
        self._following: set[asyncio.Task[None]] = set()
        self._heard = b""

    def tell_ready(self, on_supervisor_gone: Callable[[], None], follow: Follow) -> None:
        """Reports that requests are answered, and listens from then on.

        Args:
            on_supervisor_gone: Called if the supervisor dies.
            follow: Called when another worker changed what it serves.
        """
        link = self._socket
        if link is None:
            return
        with suppress(BrokenPipeError):  # gone already: then there is an end to read, below
            link.sendall(READY)
        loop = asyncio.get_running_loop()

        def read() -> None:
            # Holding `link` here keeps it open: uvloop aborts the process when a file that it
            # watches is closed.
            if heard := link.recv(4096, socket.MSG_DONTWAIT):
                *lines, self._heard = (self._heard + heard).split(b"\n")
                for line in lines:
                    self._handle(line.decode(), follow)
                return
            loop.remove_reader(link)
            for waiting in self._waiting.values():
                waiting.cancel()
            on_supervisor_gone()

        loop.add_reader(link, read)

    async def tell_others(self, name: str, versions: Collection[int]) -> bool:
        """Lets the other workers follow; returns, when they have, whether all could.

        Args:
            name: The model that changed.
            versions: What this worker serves of it now.
        """
        if self._socket is None:
            return True
        token = next(self._tokens)
        settled: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting[token] = settled
        self._say(f"{CHANGE} {token} {name} {_write_versions(versions)}")
        try:
            return await settled
        finally:
            del self._waiting[token]

    def _handle(self, line: str, follow: Follow) -> None:
        verb, token, *words = line.split()
        if verb == SETTLED and token in self._waiting:
            self._waiting[token].set_result(words == [YES])
        elif verb == FOLLOW:
            task = asyncio.create_task(self._follow(token, words, follow))
            self._following.add(task)
            task.add_done_callback(self._following.discard)

    async def _follow(self, token: str, words: list[str], follow: Follow) -> None:
        name, expected = words or (None, None)
        answer = NO
        try:
            answer = YES if _write_versions(await follow(name)) == expected else NO
        except Exception:  # whoever asked waits for an answer
            logger.exception("cannot follow a change of %s", name or "the models")
        if token != NO_TOKEN:
            self._say(f"{FOLLOWED} {token} {answer}")

    def _say(self, line: str) -> None:
        if self._socket is not None:
            with suppress(BrokenPipeError):
                self._socket.sendall(line.encode() + b"\n")

    def fail(self, reason: str) -> NoReturn:
        """Ends this process, which has not answered any request yet, with one line that says why.

        Raising instead would have the host log a traceback of its own start-up code.
        """
        line = " ".join(reason.split())
        if self._socket is None:
            sys.stderr.write(f"fivecrop: error: {line}\n")
            sys.stderr.flush()
        else:
            with suppress(BrokenPipeError):
                self._socket.sendall(FAILED + line.encode() + b"\n")
        os._exit(_EXIT_FAILED)


def _write_versions(versions: Collection[int]) -> str:
    return ",".join(map(str, sorted(versions))) or _NO_VERSIONS
