"""Scoring through a service, over HTTP and gRPC alike: the same rows, and patience."""

from __future__ import annotations

import concurrent.futures
import http.server
import json
import socket
import threading
import time
from dataclasses import dataclass

import grpc
import pytest

from service.errors import ErrorCode, RequestError
from service.grpc_answer import DETAILS_KEY, STATUS, encode_details
from service.grpc_transport import GrpcTransport
from service.http_answer import STATUS as HTTP_STATUS
from service.proto import image_classifier_pb2 as messages
from service.score.errors import JobFailed, ScoreError
from service.score.http_transport import HttpTransport
from service.score.service_engine import ServiceEngine

MODEL = {
    **{"name": "digits-linear", "version": 1, "digest": "d" * 64},
    **{"provider": "cpu", "variant": "fp32", "classes": 10},
}
PREDICTION = {"label": "3", "index": 3, "score": 0.75}
IMAGE = {"width": 32, "height": 32, "format": "png"}


@dataclass
class Asked:
    model: str
    top_k: int
    tta: str
    priority: str
    key: str | None


class Service:
    """Answers each image with what `plan` says: an error, nothing at all, or 200; then with 200."""

    def __init__(self):
        self.plan = []
        self.asked = []
        self.models = [MODEL, {**MODEL, "version": 2}]
        self.refusal = None
        self._lock = threading.Lock()

    def next_step(self, *asked):
        with self._lock:
            self.asked.append(Asked(*asked))
            return self.plan.pop(0) if self.plan else 200


class HttpService(Service):
    connect = HttpTransport

    def __init__(self):
        super().__init__()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(handler):  # noqa: N805
                handler.answer(self.refusal or 200, {"models": self.models})

            def do_POST(handler):  # noqa: N805
                handler.rfile.read(int(handler.headers["Content-Length"]))
                _, _, query = handler.path.partition("/v1/classify?")
                given = dict(pair.split("=") for pair in query.split("&"))
                step = self.next_step(
                    given["model"].replace("%40", "@"),
                    int(given["top_k"]),
                    given["tta"],
                    given["priority"],
                    handler.headers["Authorization"],
                )
                answer = {"predictions": [PREDICTION], "abstained": False, "image": IMAGE}
                handler.answer(step, answer)

            def answer(handler, step, document):  # noqa: N805
                if step is None:
                    handler.close_connection = True
                    handler.connection.close()
                    return
                headers, status = {"Server-Timing": "decode;dur=2.5, infer;dur=4.0"}, 200
                if isinstance(step, RequestError):
                    status = HTTP_STATUS[step.code]
                    document = {"code": step.code, "detail": step.detail}
                    if step.retry_after_s is not None:
                        headers["Retry-After"] = str(step.retry_after_s)
                body = json.dumps(document).encode()
                if isinstance(step, bytes):
                    status, body = 502, step
                handler.send_response(status)
                for name, value in {"Content-Length": len(body), **headers}.items():
                    handler.send_header(name, str(value))
                handler.end_headers()
                handler.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def stop(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


class GrpcService(Service):
    connect = GrpcTransport

    def __init__(self):
        super().__init__()
        self.server = grpc.server(
            concurrent.futures.ThreadPoolExecutor(20),
            options=[("grpc.max_receive_message_length", 1000_000)],
        )
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                method,
                getattr(messages, f"{name}Request").FromString,
                getattr(messages, f"{name}Response").SerializeToString,
            )
            for name, method in (("Classify", self.classify), ("Models", self.list_models))
        }
        self.server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("fivecrop.v1.ImageClassifier", handlers)]
        )
        self.url = f"http://127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def stop(self):
        self.server.stop(0).wait()

    def list_models(self, request, context):
        self.judge(self.refusal or 200, context)
        return messages.ModelsResponse(models=[messages.Model(**model) for model in self.models])

    def classify(self, request, context):
        key = dict(context.invocation_metadata()).get("authorization")
        step = self.next_step(request.model, request.top_k, request.tta, request.priority, key)
        self.judge(step, context)
        return messages.ClassifyResponse(
            predictions=[messages.Prediction(**PREDICTION)],
            image=messages.ImageInfo(**IMAGE),
            timings=messages.Timings(decode_ms=2.5, infer_ms=4.0),
        )

    def judge(self, step, context):
        if isinstance(step, RequestError):
            context.set_trailing_metadata(((DETAILS_KEY, encode_details(step)),))
            context.abort(STATUS[step.code], step.detail)
        if step is None or isinstance(step, bytes):
            context.abort(grpc.StatusCode.UNAVAILABLE, "no healthy upstream")


@pytest.fixture(params=[HttpService, GrpcService], ids=["http", "grpc"])
def fake(request):
    service = request.param()
    yield service
    service.stop()


@pytest.fixture
def ask(score, fake, photos):
    engine = "grpc" if isinstance(fake, GrpcService) else "http"

    def run(out="scores", **more):
        return score(photos, out, engine=engine, url=fake.url, connect=type(fake).connect, **more)

    return run


@pytest.fixture
def make_engine(make_options, fake):
    """Returns `make_engine(url, **options)`."""
    engines = []

    def make(url=fake.url, **more):
        options = make_options(engine="http", url=url, **more)
        engines.append(ServiceEngine(options, 100, type(fake).connect))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def refuse(code, detail="not today", retry_after_s=None):
    return RequestError(ErrorCode(code), detail, retry_after_s=retry_after_s)


def test_every_image_is_asked_for_once_with_the_options(ask, fake, read_rows, manifest_of):
    summary = ask(top_k=3, tta="hflip", key="fc_a_b", workers=3)
    assert summary.state == "done"
    assert len(fake.asked) == 60
    assert {tuple(vars(one).values()) for one in fake.asked} == {
        ("digits-linear@2", 3, "hflip", "low", "Bearer fc_a_b")
    }
    rows = read_rows()
    assert [row["id"] for row in rows] == list(range(60))
    assert {(row["label"], row["version"], row["bundle_digest"]) for row in rows} == {
        ("3", 2, "d" * 64)
    }
    assert manifest_of()["model"]["version"] == 2
    spent = summary.progress.spent
    assert (round(spent.decode_s, 6), round(spent.infer_s, 6)) == (0.15, 0.24)
    assert spent.read_s > 0


def test_a_busy_or_broken_service_is_asked_again(ask, fake, read_rows, monkeypatch):
    monkeypatch.setattr("service.score.service_engine._LONGEST_PAUSE_S", 0.01)
    monkeypatch.setattr("service.score.service_engine._FIRST_PAUSE_S", 0.01)
    busy = ["overloaded", "rate_limited", "not_ready", "draining", "deadline_exceeded"]
    fake.plan = [*map(refuse, busy), None, b"<html>a proxy says no</html>"]
    assert ask(limit=1, workers=1).state == "done"
    assert len(fake.asked) == 8
    assert [row["status"] for row in read_rows()] == ["ok"]


def test_what_is_wrong_with_an_image_is_a_row(ask, fake, read_rows):
    codes = ["image_corrupt", "body_too_large", "image_too_large", "inference_failed"]
    fake.plan = list(map(refuse, codes))
    ask(limit=6, workers=1, max_error_rate=0.9)
    assert [row["error_code"] for row in read_rows()] == [*codes, None, None]
    assert len(fake.asked) == 6


@pytest.mark.parametrize("code", ["unauthenticated", "forbidden", "model_not_found"])
def test_what_is_wrong_with_the_job_ends_it(ask, fake, code):
    fake.plan = [refuse(code, "a key is needed")]
    with pytest.raises(JobFailed, match="a key is needed"):
        ask(limit=1)


def test_patience_has_an_end(ask, fake, monkeypatch):
    monkeypatch.setattr("service.score.service_engine._PATIENCE_S", 0.1)
    fake.plan = [refuse("overloaded")] * 9
    with pytest.raises(JobFailed, match="answers overloaded, for 0 s"):
        ask(limit=1)


@pytest.mark.parametrize(("after", "least"), [(7.0, 7.0), (None, 0.25), (3600.0, 30.0)])
def test_the_service_says_when_to_come_back(make_engine, fake, monkeypatch, after, least):
    engine = make_engine()
    waited = []
    monkeypatch.setattr(engine._is_closing, "wait", waited.append)
    fake.plan = [refuse("overloaded", retry_after_s=after)]
    assert engine._classify(b"image").predictions[0].label == "3"
    (pause_s,) = waited
    assert least <= pause_s <= 1.3 * least


def test_pauses_double_up_to_a_bound(make_engine, fake, monkeypatch):
    engine = make_engine()
    waited = []
    monkeypatch.setattr(engine._is_closing, "wait", waited.append)
    fake.plan = [refuse("overloaded")] * 9
    engine._classify(b"image")
    wanted = [0.25, 0.5, 1, 2, 4, 8, 16, 30, 30]
    assert all(one <= pause <= 1.3 * one for one, pause in zip(wanted, waited, strict=True))


def test_a_service_that_is_not_there_or_lacks_the_model_is_one_line(make_engine, fake):
    def refused(text, **given):
        with pytest.raises(ScoreError, match=text):
            make_engine(**given)

    for address in ("ftp://x", "http://", "http://x:y", "http://[::1", "x:3001"):
        refused("not an http:// or https:// address", url=address)
    refused("does not answer", url="http://127.0.0.1:1")
    refused("does not serve 'other'; there is digits-linear@1", model="other")
    fake.refusal = refuse("unauthenticated", "a key is needed")
    refused("a key is needed")


def test_something_else_that_listens_there_is_one_line(make_engine, fake, monkeypatch):
    for module in ("service.score.http_transport", "service.grpc_transport"):
        monkeypatch.setattr(f"{module}.CONNECT_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        with pytest.raises(ScoreError, match="does not answer"):
            make_engine(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - start < 10
    other = {HttpService: GrpcService, GrpcService: HttpService}[type(fake)]()
    try:
        with pytest.raises(ScoreError, match=r"does not answer|not as fivecrop does"):
            make_engine(other.url)
    finally:
        other.stop()


def test_a_service_that_goes_while_the_job_runs_can_be_resumed(ask, fake, read_rows):
    fake.plan = [200] * 30 + [refuse("forbidden", "forbidden")]
    with pytest.raises(JobFailed, match="forbidden"):
        ask(workers=1, part_rows=5)
    before = len(read_rows())
    assert 0 < before <= 30
    assert ask(resume=True).progress.resumed == before
    assert len(read_rows()) == 60


@pytest.mark.parametrize("fake", [GrpcService], indirect=True)
def test_an_image_that_the_grpc_library_of_the_service_refuses_is_a_row(
    ask, fake, photos, read_rows
):
    (photos / "000.png").write_bytes(bytes(1_000_001))
    ask(workers=1, limit=3, max_error_rate=0.9)
    assert [row["error_code"] for row in read_rows()].count("body_too_large") == 1


@pytest.mark.parametrize("fake", [GrpcService], indirect=True)
def test_grpc_has_no_paths(make_engine):
    with pytest.raises(ScoreError, match="gRPC has no paths"):
        make_engine("http://127.0.0.1:1/fivecrop")
