"""Composition root of one worker: settings -> metrics -> classifier -> HTTP and gRPC."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import bentoml
from starlette.types import ASGIApp

from service.access import AccessControl
from service.api_keys import KeyFile
from service.classifier import Classifier, Options
from service.combining import CombiningClassifier
from service.devices import choose_gpu, count_gpus
from service.drain import Drain, close_after_answer
from service.errors import StartError
from service.gpu import GpuCollector
from service.grpc_api import GrpcServer
from service.http_api import build_http_app
from service.http_cors import allow_origins
from service.http_host import prepare_host
from service.http_results import answer_single
from service.live_workers import WorkersCollector, count_started_workers, list_live_workers
from service.log import configure_log, toggle_debug
from service.memory import give_back_large_blocks
from service.metrics import Metrics
from service.processes import ProcessesCollector, this_process
from service.repository_watch import RepositoryWatch
from service.request_id import take_request_id
from service.rollout import TellOthers
from service.settings import Settings

if TYPE_CHECKING:
    from service.tracing import Tracing


class Worker:
    """Everything that answers requests in this process.

    Attributes:
        http_app: The ASGI application of all HTTP routes.
    """

    def __init__(
        self,
        settings: Settings,
        classifier: Classifier,
        http_app: ASGIApp,
        grpc_server: GrpcServer,
        tracing: Tracing | None,
    ) -> None:
        """Takes the parts; `start` makes them."""
        self.http_app = http_app
        self._classifier = classifier
        self._tracing = tracing
        self._watch: RepositoryWatch | None = None
        self._log_level = settings.log_level
        self._drain_s = settings.drain_s
        self._drain = Drain(classifier, grpc_server, settings, self._close_connections)

    @classmethod
    async def start(cls, settings: Settings, client_schema: Mapping[str, Any]) -> Self:
        """Returns a worker that answers: models proved, gRPC listening, signals in hand.

        Args:
            settings: Of the server.
            client_schema: What BentoML's own client asks for before its first request.

        Raises:
            StartError: A file of settings or a model is damaged, or gRPC cannot listen.
        """
        configure_log(settings.log_level, settings.log_format)
        give_back_large_blocks()
        control = AccessControl(None if settings.api_keys is None else KeyFile(settings.api_keys))
        metrics = _build_metrics(settings)
        tracing = _start_tracing(settings)
        device = choose_gpu(bentoml.server_context.worker_index or 1, count_gpus())
        classifier = await asyncio.to_thread(
            CombiningClassifier.build, settings, metrics, device=device, tracing=tracing
        )
        edge = build_http_app(classifier, metrics, settings, control, client_schema, tracing)
        http_app = allow_origins(edge, settings.cors_origins)
        grpc_server = GrpcServer(classifier, metrics, settings, control, tracing)
        await grpc_server.start()
        prepare_host(settings, metrics)
        worker = cls(settings, classifier, http_app, grpc_server, tracing)
        worker._listen_for_signals()
        if settings.model_watch and classifier.rollout is not None:
            place = settings.model_repository
            worker._watch = RepositoryWatch(
                place if isinstance(place, Path) else None,
                classifier.rollout,
                metrics,
                look_every_s=settings.model_poll_s,
            )
            worker._watch.start()
        metrics.count_worker()
        return worker

    async def classify(self, image: bytes) -> dict[str, Any]:
        """Returns the document that `POST /v1/classify` answers with."""
        result = await self._classifier.classify(image, Options())
        document: dict[str, Any] = json.loads(answer_single(result, take_request_id(None)).body)
        return document

    def drain(self) -> None:
        """Starts to drain, as on SIGTERM."""
        self._drain.start(self._drain_s)

    def join_others(self, tell_others: TellOthers) -> None:
        """Lets the other workers of the server follow what is changed through this one."""
        if self._classifier.rollout is not None:
            self._classifier.rollout.tell_others = tell_others

    async def follow(self, name: str | None) -> list[int]:
        """Serves what another worker found good; returns the versions that now serve.

        Raises:
            BundleError: The repository or the orders cannot be read.
        """
        rollout = self._classifier.rollout
        if rollout is None:
            return []
        await rollout.follow(None if name is None else {name}, retry=name is not None)
        return [] if name is None else rollout.versions(name)

    async def finish(self) -> None:
        """Returns when nothing is in flight any more."""
        if self._watch is not None:
            await self._watch.stop()
        await self._drain.finish()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    def _listen_for_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # a host inside a test; signals are not its own to take
        self._drain.install()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, toggle_debug, self._log_level)

    def _close_connections(self) -> None:
        self.http_app = close_after_answer(self.http_app)


def _start_tracing(settings: Settings) -> Tracing | None:
    if settings.traces_endpoint is None:
        return None
    try:
        from service.tracing import Tracing
    except ModuleNotFoundError:
        raise StartError("traces need more packages: install fivecrop[traces]") from None
    return Tracing.to_collector(settings.traces_endpoint, sample_ratio=settings.traces_sample_ratio)


def _build_metrics(settings: Settings) -> Metrics:
    folder = settings.metrics_folder
    list_pids = this_process if folder is None else partial(list_live_workers, folder)
    count_started = partial(count_started_workers, folder)
    return Metrics(
        max_labels=settings.metric_labels,
        shared_folder=folder,
        collectors=(
            ProcessesCollector(list_pids),
            WorkersCollector(settings.workers, count_started),
            GpuCollector(),
        ),
    )
