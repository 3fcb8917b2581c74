"""The socket between `fivecrop serve` and each of its workers: one line up, silence down.

A worker writes `ready` once, or `failed` and why. Each end sees the other one die as the end of
the stream, at once and without polling.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NoReturn

READY: Final = b"ready\n"
FAILED: Final = b"failed "

_EXIT_FAILED: Final = 2


class SupervisorLink:
    """The worker's end. Without a supervisor (`bentoml serve`) it reports to standard error."""

    def __init__(self, fd: int | None) -> None:
        self._socket = None if fd is None else socket.socket(fileno=fd)

    def tell_ready(self, on_supervisor_gone: Callable[[], None]) -> None:
        """Reports that requests are answered; calls back if the supervisor dies after that."""
        link = self._socket
        if link is None:
            return
        with suppress(BrokenPipeError):  # gone already: then there is an end to read, below
            link.sendall(READY)
        loop = asyncio.get_running_loop()

        def end() -> None:
            # Holding `link` here keeps it open: uvloop aborts the process when a file that it
            # watches is closed.
            loop.remove_reader(link)
            on_supervisor_gone()

        # The supervisor never writes, so anything to read can only be the end of the stream.
        loop.add_reader(link, end)

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
