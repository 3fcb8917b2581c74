"""The log: text for people, JSON for collectors, a line a request when asked for."""

from __future__ import annotations

import json
import logging

import httpx
import pytest
from bad_requests import JPEG

from service.http_api import build_http_app
from service.log import configure_log, toggle_debug
from service.proto import image_classifier_pb2 as messages
from service.proto.image_classifier_pb2_grpc import ImageClassifierStub

pytestmark = pytest.mark.usefixtures("log_put_back")

logger = logging.getLogger("service.test")


def read_lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_json_line_holds_the_message_and_the_traceback(capsys):
    configure_log("info", "json")
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError:
        logger.exception('it was "%s"\n', "odd")
    logger.debug("unseen")
    (line,) = read_lines(capsys)
    assert line["message"] == 'it was "odd"\n'
    assert line["level"] == "error"
    assert line["logger"] == "service.test"
    assert line["time"].endswith("Z")
    assert "ZeroDivisionError" in line["exception"]


def test_a_librarys_warning_has_the_form_of_ours(capsys):
    logging.getLogger().addHandler(of_host := logging.StreamHandler())
    try:
        configure_log("info", "json")
        logging.getLogger("library").warning("take care")
    finally:
        logging.getLogger().removeHandler(of_host)
    (line,) = read_lines(capsys)
    assert (line["logger"], line["message"]) == ("library", "take care")


def test_level_goes_to_debug_and_back(capsys):
    configure_log("warning")
    for _ in range(2):
        toggle_debug("warning")
        logger.debug("a detail")
    said = capsys.readouterr().err
    assert said.count("a detail") == 1
    assert "the log level is now debug" in said
    assert "the log level is now warning" in said


@pytest.fixture
async def edges(make_tiny_model, metrics, make_settings, serving_grpc):
    """Both edges of a server with an access log, over one tiny model."""
    settings = make_settings(access_log=True, torchserve=True, tfserving=True, sagemaker=True)
    model = make_tiny_model(settings)
    app = build_http_app(model.classifier, metrics, settings)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://fivecrop")
    async with client, serving_grpc(model.classifier, metrics, settings) as served:
        yield client, ImageClassifierStub(served.channel)


async def test_access_log_says_who_was_answered_what_by_which_model_and_how_fast(edges, capsys):
    configure_log("info", "json")
    over_http, over_grpc = edges
    await over_http.post("/v1/classify?top_k=1", content=JPEG, headers={"x-request-id": "mine"})
    await over_grpc.Classify(
        messages.ClassifyRequest(image=JPEG), metadata=(("x-request-id", "mine"),)
    )
    for line, route, status in zip(
        read_lines(capsys),
        ("POST /v1/classify", "/fivecrop.v1.ImageClassifier/Classify"),
        (200, "OK"),
        strict=True,
    ):
        assert line["logger"] == "service.access_log"
        assert (line["route"], line["status"], line["code"]) == (route, status, "ok")
        assert (line["model"], line["version"], line["request_id"]) == ("tiny", 1, "mine")
        assert (line["images"], line["failed"], line["views"]) == (1, 0, 1)
        assert line["decode_ms"] > 0
        assert line["total_ms"] >= line["decode_ms"] + line["infer_ms"]


async def test_access_log_tells_failures_and_images_of_several(edges, capsys):
    configure_log("info", "json")
    over_http, _ = edges
    await over_http.post("/v1/classify", content=b"hello")
    await over_http.post("/v1/classify", files=[("image", JPEG), ("image", b"hello")])
    await over_http.post("/predictions/tiny", content=JPEG)
    await over_http.get("/nothing/at/all?secret=1")
    refused, several, drop_in, unknown = read_lines(capsys)
    assert (refused["status"], refused["code"]) == (415, "unsupported_media")
    assert "model" not in refused
    assert (several["images"], several["failed"], several["model"]) == (2, 1, "tiny")
    assert (drop_in["route"], drop_in["model"]) == ("POST /predictions/{model}", "tiny")
    assert (unknown["route"], unknown["code"]) == ("GET unmatched", "not_found")
    assert "secret" not in json.dumps(unknown)


async def test_access_log_for_people_is_one_line_of_the_same_facts(edges, capsys):
    configure_log("info")
    await edges[0].post("/v1/classify", content=JPEG, headers={"x-request-id": "mine"})
    (line,) = capsys.readouterr().err.splitlines()
    assert "route=POST /v1/classify status=200 code=ok" in line
    assert "request_id=mine" in line
    assert "model=tiny version=1" in line


async def test_nothing_is_logged_when_nobody_asked(http_client, capsys):
    configure_log("info", "json")
    await http_client.post("/v1/classify", content=b"img")
    assert capsys.readouterr().err == ""
