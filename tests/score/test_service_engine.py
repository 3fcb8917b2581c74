"""Scoring through a service: the same rows, and patience with one that is busy."""

from __future__ import annotations

import http.server
import json
import threading

import pytest

from service.score.errors import JobFailed, ScoreError
from service.score.service_engine import ServiceEngine

MODEL = {
    **{"name": "digits-linear", "version": 1, "digest": "d" * 64},
    **{"provider": "cpu", "variant": "fp32", "classes": 10},
}
ANSWER = {
    "predictions": [{"label": "3", "index": 3, "score": 0.75}],
    "abstained": False,
    "image": {"width": 32, "height": 32, "format": "png"},
}


class FakeService:
    """Answers each POST with what `plan` says; then with a good answer."""

    def __init__(self):
        self.plan = []
        self.asked = []
        self.models = (200, {"models": [MODEL, {**MODEL, "version": 2}]})
        lock = threading.Lock()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(handler):  # noqa: N805
                handler.answer(*self.models)

            def do_POST(handler):  # noqa: N805
                body = handler.rfile.read(int(handler.headers["Content-Length"]))
                with lock:
                    self.asked.append((handler.path, handler.headers["Authorization"], len(body)))
                    step = self.plan.pop(0) if self.plan else (200, ANSWER)
                if step is None:
                    handler.close_connection = True
                    handler.connection.close()
                else:
                    handler.answer(*step)

            def answer(handler, status, document, headers=None):  # noqa: N805
                body = json.dumps(document).encode()
                handler.send_response(status)
                for name, value in {"Content-Length": len(body), **(headers or {})}.items():
                    handler.send_header(name, str(value))
                handler.end_headers()
                handler.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def fake():
    service = FakeService()
    thread = threading.Thread(target=service.server.serve_forever)
    thread.start()
    yield service
    service.server.shutdown()
    thread.join()
    service.server.server_close()


@pytest.fixture
def ask(score, fake, photos):
    return lambda out="scores", **more: score(photos, out, engine="http", url=fake.url, **more)


def test_every_image_is_asked_for_once_with_the_options(ask, fake, read_rows, manifest_of):
    assert ask(top_k=3, tta="hflip", key="fc_a_b", workers=3).state == "done"
    assert len(fake.asked) == 60
    path, key, _ = fake.asked[0]
    assert path.startswith("/v1/classify?model=digits-linear%402&top_k=3&tta=hflip&priority=low")
    assert key == "Bearer fc_a_b"
    rows = read_rows()
    assert [row["id"] for row in rows] == list(range(60))
    assert {(row["label"], row["version"], row["bundle_digest"]) for row in rows} == {
        ("3", 2, "d" * 64)
    }
    assert manifest_of()["model"]["version"] == 2


def test_a_busy_or_broken_service_is_asked_again(ask, fake, read_rows, monkeypatch):
    monkeypatch.setattr("service.score.service_engine._LONGEST_PAUSE_S", 0.01)
    monkeypatch.setattr("service.score.service_engine._FIRST_PAUSE_S", 0.01)
    fake.plan = [
        (503, {"code": "overloaded"}),
        (429, {"code": "rate_limited"}),
        None,
        (504, {"code": "deadline_exceeded"}),
    ]
    assert ask(limit=1, workers=1).state == "done"
    assert len(fake.asked) == 5
    assert [row["status"] for row in read_rows()] == ["ok"]


def test_what_is_wrong_with_an_image_is_a_row(ask, fake, read_rows):
    fake.plan = [(422, {"code": "image_corrupt", "detail": "damaged"})]
    ask(limit=3, workers=1, max_error_rate=0.5)
    assert [row["error_code"] for row in read_rows()] == ["image_corrupt", None, None]


def test_what_is_wrong_with_the_job_ends_it(ask, fake, monkeypatch):
    fake.plan = [(401, {"code": "unauthenticated", "detail": "a key is needed"})]
    with pytest.raises(JobFailed, match="a key is needed"):
        ask("a", limit=1)
    monkeypatch.setattr("service.score.service_engine._PATIENCE_S", 0.1)
    fake.plan = [(503, {"code": "overloaded"})] * 9
    with pytest.raises(JobFailed, match="answers 503, for 0 s"):
        ask("b", limit=1)


@pytest.mark.parametrize(("after", "least"), [("7", 7.0), ("soon", 0.25), (None, 0.25)])
def test_retry_after_is_honoured(make_options, fake, monkeypatch, after, least):
    engine = ServiceEngine(fake.url, make_options(engine="http", url=fake.url), None, 100)
    waited = []
    monkeypatch.setattr(engine._is_closing, "wait", waited.append)
    fake.plan = [(503, {}, {"Retry-After": after} if after else {})]
    assert engine._classify(b"image") == ANSWER
    engine.close()
    (pause_s,) = waited
    assert least <= pause_s <= 1.3 * least


def test_a_service_that_is_not_there_or_lacks_the_model_is_one_line(make_options, fake):
    def refused(url, text, **more):
        with pytest.raises(ScoreError, match=text):
            ServiceEngine(url, make_options(**more), None, 100)

    refused("ftp://x", "not an http:// or https:// address")
    refused("http://127.0.0.1:1", "does not answer")
    refused(fake.url, "does not serve 'other'; it has digits-linear@1", model="other")
    fake.models = (401, {"detail": "a key is needed"})
    refused(fake.url, "a key is needed")


def test_a_service_that_goes_while_the_job_runs_can_be_resumed(ask, fake, read_rows):
    fake.plan = [(200, ANSWER)] * 30 + [(403, {"detail": "forbidden"})]
    with pytest.raises(JobFailed, match="forbidden"):
        ask(workers=1, part_rows=5)
    before = len(read_rows())
    assert 0 < before <= 30
    assert ask(resume=True).progress.resumed == before
    assert len(read_rows()) == 60
