"""One worker process, as the supervisor that started it sees it."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from service.environment import worker_environment
from service.errors import StartError
from service.settings import Settings
from service.supervisor_link import FAILED, READY

# Where `service` is imported from: BentoML puts the folder it runs in first on the import path.
_IMPORT_ROOT: Final = Path(__file__).resolve().parent.parent
_HOST_MODULE: Final = "_bentoml_impl.worker.service"


class WorkerProcess:
    """A started worker. It is BentoML's own worker, the same that `bentoml serve` starts."""

    def __init__(
        self,
        index: int,
        process: asyncio.subprocess.Process,
        link: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self.index = index
        self._process = process
        self._link, self._writer = link

    @classmethod
    async def start(
        cls, index: int, settings: Settings, scratch: Path, http: socket.socket
    ) -> Self:
        """Starts worker `index` (from 1), which will accept HTTP from the socket."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *_command(index, settings, http.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(http.fileno(), theirs.fileno()),
                cwd=_IMPORT_ROOT,
                env=worker_environment(
                    settings.model_copy(update={"supervisor_fd": theirs.fileno()}), scratch
                ),
                # Ctrl+C goes to the whole foreground group; only the supervisor shall act on it.
                start_new_session=True,
            )
        return cls(index, process, await asyncio.open_unix_connection(sock=ours))

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    async def wait_ready(self) -> None:
        """Returns when the worker answers requests.

        Raises:
            StartError: It cannot; with the reason it gave, or how it ended without one.
        """
        line = await self._link.readline()
        if line == READY:
            return
        code = await self.wait()
        if line.startswith(FAILED):
            raise StartError(line.removeprefix(FAILED).decode().strip())
        raise StartError(
            f"worker {self.index} ended while it started ({describe_exit(code)}); see above"
        )

    async def hear(self) -> AsyncIterator[str]:
        """Yields what the worker says after it was ready, until it ends."""
        while line := await self._link.readline():
            yield line.decode().strip()

    def tell(self, line: str) -> None:
        """Says something to the worker, unless it has ended."""
        if not self._writer.is_closing():
            self._writer.write(f"{line}\n".encode())

    async def wait(self) -> int:
        """Returns the exit code once it has ended; negative means by that signal."""
        code = await self._process.wait()
        self._writer.close()
        return code

    def send(self, number: signal.Signals) -> None:
        """Sends a signal, unless the process has ended."""
        with suppress(ProcessLookupError):
            self._process.send_signal(number)


def describe_exit(code: int) -> str:
    """Returns "exit code N" or "signal NAME"."""
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _command(index: int, settings: Settings, http_fd: int) -> list[str]:
    return [
        *(sys.executable, "-m", _HOST_MODULE, "service.app:Fivecrop"),
        *("--service-name", "Fivecrop"),
        *("--worker-id", str(index)),
        *("--fd", str(http_fd)),
        *("--args", "{}"),
        *("--timeout-keep-alive", str(settings.keep_alive_s)),
        *("--timeout-graceful-shutdown", str(round(settings.shutdown_grace_s))),
    ]
