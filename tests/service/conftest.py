"""Fixtures of the service tests: stubs, and servers on free ports."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import io
import logging
import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import grpc
import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image

from service.access import AccessControl
from service.api_keys import KeyFile, KeyRing, KeyScope, make_key, write_keys
from service.batcher import Batcher
from service.bundle.decision import Verdict
from service.bundle.manifest import Decision, Manifest
from service.bundle.postprocess import Prediction
from service.bundle.repository import Bundle
from service.classifier import Classification, Classifier, ModelDescription, Options, Timings
from service.combining import CombiningClassifier
from service.errors import ErrorCode, RequestError
from service.grpc_api import GrpcServer
from service.http_api import build_http_app
from service.http_protocol import HttpConnection
from service.metrics import Metrics
from service.models import Model, Models
from service.schedule import Lane
from service.settings import Settings


class StubClassifier:
    """Has the interface of the classifier and does what a test tells it to."""

    def __init__(self):
        self.error: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.arrived = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.calls: list[tuple[bytes, object]] = []
        self.running = self.most_running = 0
        self.is_ready, self.is_draining, self.is_stuck = True, False, False
        self.unavailable = ()
        self.rollout = self.trials = SimpleNamespace()  # their routes exist

    def refuse_early(self, options):
        pass

    async def classify(self, image, options):
        self.calls.append((image, options))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self.arrived.set()
        try:
            if self.gate is not None:
                await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        finally:
            self.running -= 1
        if self.error is not None:
            raise self.error
        if image == b"bad":
            raise RequestError(ErrorCode.IMAGE_CORRUPT, "damaged")
        return Classification(
            model="toy",
            version=3,
            predictions=(
                Prediction(label="cát", index=2, score=0.75),
                Prediction(label="dog", index=0, score=0.25),
            ),
            probabilities=np.array([0.25, 0, 0.75], np.float32),
            verdict=Verdict(abstained=False, threshold=None),
            width=4,
            height=2,
            format="png",
            views=1,
            batch_views=1,
            timings=Timings(decode_s=0.001, queue_s=0.002, infer_s=0.003, total_s=0.0065),
        )

    async def classify_many(self, images, options):
        return [await self._try(image, options) for image in images]

    async def _try(self, image, options):
        try:
            return await self.classify(image, options)
        except RequestError as error:
            return error

    def describe_models(self):
        return [
            ModelDescription(
                name="toy",
                version=3,
                provider="cpu",
                variant="fp32",
                is_default=True,
                state="ready",
                classes=3,
                input_height=8,
                input_width=8,
                resized_side=9,
                good_batch_views=4,
                max_batch_delay_ms=2.0,
                digest="d" * 64,
                top1=None,
                labels=("dog", "bird", "cát"),
                decision=Decision(),
            )
        ]

    def describe_trials(self):
        return []

    def describe_unavailable(self):
        return self.unavailable

    def describe_model(self, reference):
        if reference not in ("toy", "toy@3"):
            raise RequestError(ErrorCode.MODEL_NOT_FOUND, "no such model")
        return self.describe_models()[0]


@pytest.fixture
def stub_classifier():
    return StubClassifier()


@pytest.fixture
def free_port():
    """Returns a function that finds a port nobody listens on."""

    def find():
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]

    return find


@pytest.fixture
def make_settings(free_port):
    """Returns a function that makes settings with a free gRPC port."""
    return lambda **given: Settings(**{"grpc_port": free_port(), **given})


@pytest.fixture
def log_put_back():
    """Leaves the log of `service` as it was."""
    log = logging.getLogger("service")
    handlers, level, propagates = log.handlers, log.level, log.propagate
    yield
    log.handlers, log.propagate = handlers, propagates
    log.setLevel(level)


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
async def http_client(stub_classifier, metrics, make_settings):
    """A client of the HTTP edge over the stub, without sockets."""
    app = build_http_app(stub_classifier, metrics, make_settings())
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://fivecrop"
    ) as client:
        yield client


@pytest.fixture
async def administered(growing_repository, metrics, make_settings, tmp_path, serving_grpc):
    """Returns `administered(*scopes)`: both edges over the growing repository, behind a key.

    `http` is a client that sends the key, `channel` one to gRPC, with `metadata` to send.
    """
    async with contextlib.AsyncExitStack() as stack:

        async def administered(*scopes):
            text, kept = make_key(scopes or KeyScope)
            path = tmp_path / "keys.json"
            write_keys(path, KeyRing(keys=(kept,)))
            settings = make_settings(model_repository=growing_repository.folder, api_keys=path)
            control = AccessControl(KeyFile(path))
            classifier = await asyncio.to_thread(CombiningClassifier.build, settings, metrics)
            stack.push_async_callback(classifier.close)
            headers = {"authorization": f"Bearer {text}"}
            transport = httpx.ASGITransport(build_http_app(classifier, metrics, settings, control))
            served = await stack.enter_async_context(
                serving_grpc(classifier, metrics, settings, control)
            )
            http = httpx.AsyncClient(
                transport=transport, base_url="http://fivecrop", headers=headers
            )
            return SimpleNamespace(
                http=await stack.enter_async_context(http),
                channel=served.channel,
                metadata=tuple(headers.items()),
            )

        yield administered


@contextlib.asynccontextmanager
async def _serving_http(app, http=HttpConnection, ssl=None):
    quiet = {"log_config": None, "access_log": False, "server_header": False}
    config = uvicorn.Config(app, port=0, http=http, lifespan="off", **quiet)
    config.load()
    config.ssl = ssl
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True  # a failed test must not hang
        await task


@pytest.fixture
def serving_http():
    """Returns `serving_http(app)`: an async context with the port of a real server."""
    return _serving_http


@contextlib.asynccontextmanager
async def _serving_grpc(classifier, metrics, settings, control=None, *, tracing=None, **options):
    server = GrpcServer(classifier, metrics, settings, control, tracing)
    port = await server.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", **options)
    try:
        yield SimpleNamespace(server=server, port=port, channel=channel)
    finally:
        await channel.close()
        await server.stop(0)


@pytest.fixture
def serving_grpc():
    """Returns `serving_grpc(classifier, metrics, settings)`: an async context with a channel."""
    return _serving_grpc


def _tiny_manifest(**facts: object) -> Manifest:
    record = {"sha256": "0" * 64, "bytes": 1}
    return Manifest.model_validate(
        {
            "name": "tiny",
            "version": 1,
            "created": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
            "licence": "CC0-1.0",
            "architecture": "means",
            "input": {"height": 8, "width": 8},
            "preprocess": {
                "resize": {"policy": "shorter_side", "size": 8, "interpolation": "bilinear"},
                "crop": {"height": 8, "width": 8},
                "background": (0, 0, 0),
            },
            "normalisation": {"mean": (0, 0, 0), "std": (1, 1, 1)},
            "labels": [{"name": "red"}, {"name": "green"}, {"name": "blue"}],
            "outputs": [{"name": "probabilities", "shape": (3,)}],
            "variants": [
                {
                    "file": "model.onnx",
                    "precision": "fp32",
                    **record,
                    "opset": 21,
                    "parity": {"max_abs": 0, "top1_agreement": 1, "images": 64},
                    "golden_tolerance": 1e-4,
                }
            ],
            "files": {"golden/golden.json": record},
            "provenance": {
                "recipe": {},
                "code_revision": "test",
                "dataset_fingerprint": "test",
                "seed": 0,
                "hardware": "test",
                "libraries": {},
            },
            **facts,
        }
    )


class TinyModel:
    """A model of three classes, red, green and blue: the share of each channel in the pixels.

    Everything around it is real: decoding, limits, queue, batches, postprocessing. Clearing `gate`
    holds its batches back, and `together` says how many views each of them waits for.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        *,
        tracing=None,
        together: int = 1,
        **facts: object,
    ):
        self.batches: list[int] = []
        self.waiting = 0
        self.gate = threading.Event()
        self.gate.set()
        manifest = _tiny_manifest(**facts)
        lane = Lane(
            name="tiny@1",
            run=self.run,
            max_batch_views=16,
            good_batch_views=together,
            max_delay_s=60 if together > 1 else 0,
        )
        model = Model(
            bundle=Bundle(folder=Path(), manifest=manifest, digest="0" * 64),
            variant=manifest.variants[0],
            engine=SimpleNamespace(provider="cpu"),
            lane=lane,
            labels=tuple(label.name for label in manifest.labels),
        )
        batcher = Batcher(
            compute_threads=2,
            device_threads=0,
            max_queue_views=settings.max_queue_views,
            max_queue_bytes=settings.max_queue_bytes,
            metrics=metrics,
        )
        batcher.add_lane(lane)
        self.classifier = Classifier(
            models=Models([model], None),
            batcher=batcher,
            settings=settings,
            metrics=metrics,
            tracing=tracing,
        )

    def run(self, views):
        self.waiting += 1
        self.gate.wait()
        self.batches.append(len(views))
        sums = views.sum(axis=(1, 2), dtype=np.float32) + 1
        return sums / sums.sum(axis=1, keepdims=True)


@pytest.fixture
def make_png():
    """Returns `make_png(size, colour)`: a PNG file of one colour."""

    def make(size, colour):
        file = io.BytesIO()
        Image.new("RGB", size, colour).save(file, "PNG")
        return file.getvalue()

    return make


@pytest.fixture
async def make_tiny_model(metrics):
    """Returns a function from settings, and options of a `TinyModel`, to one.

    It is closed after the test.
    """
    made: list[TinyModel] = []

    def make(settings: Settings, **options: object) -> TinyModel:
        made.append(TinyModel(settings, metrics, **options))
        return made[-1]

    yield make
    for model in made:
        model.gate.set()
        await model.classifier.close()


@pytest.fixture
def ask(growing_repository):
    """Returns `ask(classifier, reference)`: the version that answers, whose scores it must be."""

    async def ask(classifier, reference=None):
        options = Options(model=reference, top_k=1)
        answer = await classifier.classify(growing_repository.image, options)
        assert answer.predictions[0].index == growing_repository.expected_class(answer.version)
        return answer.version

    return ask
