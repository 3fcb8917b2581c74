"""The BentoML service: `fivecrop serve` and `bentoml serve service.app:Fivecrop` run it.

One instance a worker process. Nothing happens at import: BentoML also imports this module to read
the declaration, in processes that serve nothing. What a worker is made of is in `worker.py`.
"""

from __future__ import annotations

import gc
import logging
import sys
from typing import Any

import bentoml
from starlette.types import ASGIApp, Receive, Scope, Send

from service.environment import load_settings, opt_out_of_telemetry
from service.errors import FivecropError
from service.supervisor_link import SupervisorLink


class HostedService(bentoml.Service[Any]):  # type: ignore[misc]
    """A BentoML service whose requests go straight to the application of its worker.

    Everything BentoML would put around a mounted application stays out of their way: its /livez,
    /readyz and /metrics (ours know when the worker drains) and its middlewares. The one for
    timeouts alone starts a task and a timer a request and keeps the timer until it would have
    fired: 143 against 80 CPU-us a request, p99 69 against 1.6 ms at 8 connections, and memory that
    grows with the timeout. Deadlines are kept by the classifier and the HTTP edge.
    """

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        """Returns the application that BentoML's worker runs."""
        return _OwnRoutes(super().to_asgi(is_main=is_main))


class _OwnRoutes:
    """Leaves to BentoML its lifespan, which starts and stops us, and no request."""

    def __init__(self, bentoml_app: ASGIApp) -> None:
        self._bentoml_app = bentoml_app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._bentoml_app(scope, receive, send)
        else:
            await bentoml.get_current_service().worker.http_app(scope, receive, send)


@bentoml.service(
    name="Fivecrop",
    service_class=HostedService,
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": [".*"]},
)
class Fivecrop:
    """Classifies images with the bundles of a model repository, over HTTP and gRPC."""

    def __init__(self) -> None:
        _tame_host_log()

    @bentoml.api(route="/v1/classify")  # type: ignore[untyped-decorator]
    async def classify(self, image: bytes, /) -> dict[str, Any]:
        """Returns the best classes of one encoded image.

        Tells BentoML's client what `POST /v1/classify` takes and gives. Over HTTP our own route of
        that path answers, with its limits and its errors, and not this method.
        """
        return await self.worker.classify(image)

    @bentoml.on_startup  # type: ignore[untyped-decorator]
    async def start(self) -> None:
        """Answers requests when it returns; a worker that cannot, ends with one line."""
        link = SupervisorLink(None)
        try:
            settings = load_settings()
            link = SupervisorLink(settings.supervisor_fd)
            opt_out_of_telemetry()
            from service.worker import Worker

            self.worker = await Worker.start(settings, client_schema=_client_schema())
        except FivecropError as error:
            link.fail(str(error))
        # What start-up made lives as long as the process: the collector need not visit it again.
        gc.collect()
        gc.freeze()
        self.worker.join_others(link.tell_others)
        link.tell_ready(on_supervisor_gone=self.worker.drain, follow=self.worker.follow)

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    async def stop(self) -> None:
        """Returns when nothing is in flight any more."""
        await self.worker.finish()


def _client_schema() -> dict[str, Any]:
    schema: dict[str, Any] = Fivecrop.schema()  # type: ignore[attr-defined]
    return schema


def _tame_host_log() -> None:
    """Leaves of the host's own log what matters, once, and keeps it off standard output."""
    logging.getLogger("bentoml").setLevel(logging.WARNING)
    host_log = logging.getLogger("uvicorn.error")
    host_log.handlers.clear()  # the root logger has the same one
    # Below are warnings of what a stranger sends, a line each; those are counted instead.
    host_log.setLevel(logging.ERROR)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
            handler.setStream(sys.stderr)
