"""The HTTP server that this worker runs in, and what has to be told to it before it listens."""

from __future__ import annotations

import asyncio
import signal
from functools import partial

import uvicorn

from service.errors import StartError
from service.http_connection import ConnectionLimits, TimedConnection
from service.metrics import Metrics
from service.settings import Settings
from service.tls import TlsFiles, make_http_context


def prepare_host(settings: Settings, metrics: Metrics) -> None:
    """Makes the server take connections as ours; called while it starts, before it listens.

    BentoML's worker makes the server and passes on few of its options, but uvicorn reads its
    configuration when it starts to listen, which is after our start-up hook and on the loop that
    this is called on. The server is found through the signal handler that it has installed, as
    `service/drain.py` does.

    Raises:
        StartError: The server is not uvicorn's, so that nothing set here would be in force, or
            the certificate cannot be used.
    """
    handler = signal.getsignal(signal.SIGTERM)
    host = getattr(handler, "__self__", None)
    if not isinstance(host, uvicorn.Server):
        raise StartError("the HTTP server of this worker is not uvicorn's")
    config = host.config
    config.http_protocol_class = make_connection(settings, metrics)  # type: ignore[assignment]
    files = TlsFiles.of(settings)
    config.ssl = None if files is None else make_http_context(files)
    if files is not None:
        # uvicorn has no option for it, and the loop's own limit is a minute.
        loop = asyncio.get_running_loop()
        listen = partial(loop.create_server, ssl_handshake_timeout=settings.header_timeout_s)
        loop.create_server = listen  # type: ignore[method-assign]
    # Nothing here speaks WebSocket; without a class for it, an upgrade is a plain request.
    config.ws_protocol_class = None


def make_connection(settings: Settings, metrics: Metrics) -> partial[TimedConnection]:
    """Returns what makes a connection's protocol."""
    limits = ConnectionLimits(
        head_s=settings.header_timeout_s,
        head_bytes=settings.max_header_bytes,
        rest_s=settings.keep_alive_s,
        write_s=settings.write_timeout_s,
    )
    return partial(TimedConnection, limits=limits, metrics=metrics)
