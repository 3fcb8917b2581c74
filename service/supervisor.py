"""Keeps the worker processes of one server running: start, readiness, replacement, stop.

BentoML's own supervisor (circus) notices a dead worker after up to 10 s, starts one that cannot
start again for ever, says nothing when the service is ready, and costs a second import of BentoML
before the first worker starts. This one imports no BentoML, and everything it does is an answer to
an event: a line from a worker, the end of a process, a signal.
"""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import logging
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from service.errors import StartError
from service.log import toggle_debug
from service.ports import Ports, reachable_host
from service.relay import Relay
from service.settings import Settings
from service.worker_process import WorkerProcess, describe_exit

logger = logging.getLogger(__name__)

_IN_ORDER = (0, -signal.SIGTERM)
# What a worker may take beyond its drain and grace before it is killed.
_STOP_MARGIN_S = 5.0
# A worker that served this long did not end because of how it started.
_STEADY_S = 60.0


def run_server(settings: Settings, announce: Callable[[str], None]) -> bool:
    """Serves until SIGTERM or SIGINT; returns whether everything then ended in order.

    Args:
        settings: Of the whole server.
        announce: Called once, with the line that says where everything is, when all workers
            answer requests.

    Raises:
        StartError: A port is taken, or a worker cannot start.
    """
    with (
        Ports(
            settings.host,
            http=settings.http_port,
            grpc=settings.grpc_port,
            workers=settings.workers,
        ) as ports,
        _scratch_folder(settings.metrics_folder) as scratch,
    ):
        _warn_if_open(settings, ports.http)
        shared = scratch if settings.workers > 1 else None
        settings = settings.model_copy(update={"metrics_folder": shared})
        return asyncio.run(_Supervisor(settings, ports, scratch, announce).run())


def _warn_if_open(settings: Settings, http: socket.socket) -> None:
    address = ipaddress.ip_address(http.getsockname()[0])
    if settings.api_keys is None and not address.is_loopback:
        logger.warning(
            "listening on %s without API keys: whoever reaches it may use it (see `fivecrop keys`)",
            address,
        )


class _Supervisor:
    def __init__(
        self, settings: Settings, ports: Ports, scratch: Path, announce: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._ports = ports
        self._scratch = scratch
        self._announce = announce
        self._is_announced = False
        self._stopping = asyncio.Event()
        self._workers: dict[int, WorkerProcess] = {}
        self._serving: set[int] = set()
        self._ended_in_order = True
        self._relay = Relay(lambda index, line: self._workers[index].tell(line))

    async def run(self) -> bool:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        loop.add_signal_handler(signal.SIGUSR1, self._toggle_debug)
        slots = [
            asyncio.create_task(self._keep_worker(index))
            for index in range(1, self._settings.workers + 1)
        ]
        try:
            await asyncio.gather(*slots)
        finally:
            self._stopping.set()
            self._kill_workers()
            await asyncio.gather(*slots, return_exceptions=True)
        return self._ended_in_order

    async def _keep_worker(self, index: int) -> None:
        """Keeps one worker serving until the server stops.

        Raises:
            StartError: It cannot start, and without it the server is incomplete or dead.
        """
        pauses_s = _restart_pauses()
        while not self._stopping.is_set():
            worker = await WorkerProcess.start(
                index, self._settings, self._scratch, self._ports.http
            )
            self._workers[index] = worker
            if self._stopping.is_set():  # meanwhile; the signal went to the others
                worker.send(signal.SIGKILL)
            try:
                await worker.wait_ready()
                if await self._watch(worker) > _STEADY_S:
                    pauses_s = _restart_pauses()
            except StartError as error:
                if self._stopping.is_set():
                    return
                if not self._is_announced or not self._serving:
                    raise
                logger.error("worker %d cannot start again: %s", index, error)
            finally:
                self._forget_gauges(worker.pid)
            await self._pause(next(pauses_s))

    async def _watch(self, worker: WorkerProcess) -> float:
        """Returns, when a worker that serves has ended, the seconds that it did."""
        start = time.monotonic()
        self._serving.add(worker.index)
        self._relay.join(worker.index, is_late=self._is_announced)
        hearing = asyncio.create_task(self._hear(worker))
        if not self._is_announced and len(self._serving) == self._settings.workers:
            self._is_announced = True
            self._announce(_describe_addresses(self._settings))
        code = await worker.wait()
        hearing.cancel()
        self._relay.leave(worker.index)
        self._serving.discard(worker.index)
        if self._stopping.is_set():
            self._ended_in_order &= code in _IN_ORDER
        else:
            logger.warning(
                "worker %d (pid %d) ended with %s; starting another",
                worker.index,
                worker.pid,
                describe_exit(code),
            )
        return time.monotonic() - start

    async def _hear(self, worker: WorkerProcess) -> None:
        with suppress(ConnectionError):
            async for line in worker.hear():
                self._relay.hear(worker.index, line)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    def _stop(self, number: signal.Signals) -> None:
        """SIGTERM drains; SIGINT only finishes what is in flight; a second SIGINT kills."""
        if self._stopping.is_set():
            if number == signal.SIGINT:
                self._kill_workers()
            return
        self._stopping.set()
        # The copies of the workers stay open: the last one to close its copy ends the listening.
        self._ports.close()
        for index, worker in self._workers.items():
            worker.send(number if index in self._serving else signal.SIGKILL)
        limit_s = self._settings.drain_s + self._settings.shutdown_grace_s + _STOP_MARGIN_S
        asyncio.get_running_loop().call_later(limit_s, self._kill_workers)

    def _toggle_debug(self) -> None:
        """Changes the log level here and in the workers; the signal would end one that starts."""
        toggle_debug(self._settings.log_level)
        for index in self._serving:
            self._workers[index].send(signal.SIGUSR1)

    def _kill_workers(self) -> None:
        for worker in self._workers.values():
            worker.send(signal.SIGKILL)

    def _forget_gauges(self, pid: int) -> None:
        if self._settings.metrics_folder is not None:
            # Imported late: only this needs it, and the import would delay every start.
            from service.live_workers import forget_worker

            forget_worker(self._settings.metrics_folder, pid)


def _restart_pauses() -> Iterator[float]:
    """Returns the seconds before each new start of a worker that keeps ending."""
    return itertools.chain((0.0, 1.0, 2.0, 4.0, 8.0, 16.0), itertools.repeat(30.0))


@contextmanager
def _scratch_folder(parent: Path | None) -> Iterator[Path]:
    """Makes a fresh folder for this server, in `parent` or the system's place for such."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="fivecrop-", dir=parent))
    except OSError as error:
        raise StartError(f"cannot make a folder for metrics: {error.strerror}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _describe_addresses(settings: Settings) -> str:
    host = reachable_host(settings.host)
    name = f"[{host}]" if ":" in host else host
    scheme = "http" if settings.tls_cert is None else "https"
    http = f"{scheme}://{name}:{settings.http_port}"
    return (
        f"fivecrop is ready: HTTP {http}/v1/classify  gRPC {name}:{settings.grpc_port}"
        f"  docs {http}/docs  metrics {http}/metrics"
    )
