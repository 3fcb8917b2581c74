"""Clients of TorchServe, TensorFlow Serving, KServe v1 and SageMaker, answered in their forms."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote

import httpx
import pytest
from bad_requests import FILES, JPEG, OPTIONS

from service.classifier import Options
from service.errors import ErrorCode, RequestError
from service.http_api import STATUS, build_http_app

DROP_INS = ("torchserve", "tfserving", "sagemaker")
# A name with a slash, or none, makes another path, which may be nothing or that of another method.
NO_MODEL = {"model_not_found", "not_found", "method_not_allowed"}


@pytest.fixture
def make_client(stub_classifier, metrics, make_settings):
    """Returns a function from settings to a client of the HTTP edge."""

    def make(classifier=stub_classifier, **given):
        app = build_http_app(classifier, metrics, make_settings(**given))
        return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://fivecrop")

    return make


@pytest.fixture
async def client(make_client):
    """A client of a server with every drop-in, over the stub."""
    async with make_client(**dict.fromkeys(DROP_INS, True)) as client:
        yield client


@pytest.fixture
async def real_client(make_client, make_tiny_model, make_settings):
    """The same over a tiny model, whose decoding and queue are real."""
    model = make_tiny_model(make_settings())
    async with make_client(model.classifier, **dict.fromkeys(DROP_INS, True)) as client:
        yield client


def encode(image):
    return {"b64": base64.b64encode(image).decode()}


def read_code(response):
    """Returns "ok" or the code of the problem, having checked the status that goes with it."""
    if response.status_code == 200:
        return "ok"
    code = response.json()["code"]
    assert response.status_code == STATUS[ErrorCode(code)]
    return code


# ---- off by default, on one by one ----

REQUESTS = {
    "torchserve": [("GET", "/ping"), ("POST", "/predictions/toy"), ("PUT", "/predictions/toy/3")],
    "tfserving": [
        ("GET", "/v1/models/toy/versions/3"),
        ("POST", "/v1/models/toy:predict"),
        ("POST", "/v1/models/toy/versions/3:predict"),
    ],
    "sagemaker": [("GET", "/ping"), ("POST", "/invocations")],
}


@pytest.mark.parametrize("on", [None, *DROP_INS])
async def test_a_drop_in_is_there_only_when_its_setting_is_on(make_client, on):
    async with make_client(**({on: True} if on else {})) as client:
        for name, requests in REQUESTS.items():
            for method, path in requests:
                body = json.dumps({"instances": [encode(b"img")]})
                response = await client.request(
                    method, path, content=body if name == "tfserving" else b"img"
                )
                is_there = (method, path) in REQUESTS.get(on, [])
                assert (response.status_code == 200) is is_there, (method, path)


async def test_our_own_description_of_a_model_stays_unless_tensorflow_serving_is_on(make_client):
    for settings, keys in (
        ({}, {"digest", "provider"}),
        ({"torchserve": True, "sagemaker": True}, {"digest", "provider"}),
        ({"tfserving": True}, {"model_version_status", "ready"}),
    ):
        async with make_client(**settings) as client:
            assert keys <= (await client.get("/v1/models/toy")).json().keys()
            described = (await client.get("/openapi.json")).json()["paths"]
            assert ("/v1/models/{name}" in described) is ("tfserving" not in settings)
            assert (await client.get("/v1/models/toy/labels")).json()["version"] == 3
            assert (await client.get("/v1/models")).json()["models"][0]["digest"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predictions/toy", b"img"),
        ("/v1/models/toy:predict", json.dumps({"instances": [encode(b"img")]})),
    ],
)
async def test_who_answered_and_where_the_time_went_is_in_the_headers(client, path, body):
    headers = (await client.post(path, content=body)).headers
    assert (headers["x-model"], headers["x-batch-views"]) == ("toy@3", "1")
    assert headers["server-timing"] == (
        "decode;dur=1.000, queue;dur=2.000, infer;dur=3.000, total;dur=6.500"
    )


# ---- TorchServe ----


async def test_torchserve_ping_tells_health(client, stub_classifier):
    assert (await client.get("/ping")).json() == {"status": "Healthy"}
    stub_classifier.is_ready = False
    response = await client.get("/ping")
    assert (response.status_code, response.json()) == (503, {"status": "Unhealthy"})


@pytest.mark.parametrize(
    ("path", "model"),
    [("toy", "toy"), ("toy/3", "toy@3"), ("toy/3.0", "toy@3"), ("toy/3.1", "toy@3.1")],
)
async def test_torchserve_prediction_is_labels_with_probabilities(
    client, stub_classifier, path, model
):
    response = await client.put(f"/predictions/{path}", content=b"img")
    assert list(response.json().items()) == [("cát", 0.75), ("dog", 0.25)]
    assert stub_classifier.calls == [(b"img", Options(model=model))]


@pytest.mark.parametrize("field", ["data", "body"])
async def test_torchserve_takes_a_form_with_one_file(client, stub_classifier, field):
    response = await client.post("/predictions/toy", files={field: b"img"})
    assert read_code(response) == "ok"
    assert stub_classifier.calls[0][0] == b"img"
    for files in ({"image": b"img"}, [(field, b"img"), (field, b"img")]):
        response = await client.post("/predictions/toy", files=files)
        assert read_code(response) == "invalid_argument"


async def test_torchserve_error_has_the_message_its_clients_read(client):
    problem = (await client.post("/predictions/toy", content=b"bad")).json()
    assert problem["message"] == problem["detail"] == "damaged"
    assert problem["code"] == "image_corrupt"


# ---- TensorFlow Serving and KServe v1 ----


@pytest.mark.parametrize("path", ["/v1/models/toy", "/v1/models/toy/versions/3"])
async def test_tensorflow_serving_state_of_a_model(client, path):
    document = (await client.get(path)).json()
    assert document["model_version_status"] == [
        {
            "version": "3",
            "state": "AVAILABLE",
            "status": {"error_code": "OK", "error_message": ""},
        }
    ]
    assert document["ready"] is True  # what KServe's client reads


async def test_kserve_is_told_at_the_root_that_the_server_is_live(make_client):
    async with make_client() as client:
        page = await client.get("/")
        assert page.headers["content-type"].startswith("text/html")
    async with make_client(tfserving=True) as client:
        response = await client.get("/")
        assert response.json() == {"status": "alive"}
        assert (await client.get("/playground")).text == page.text


@pytest.mark.parametrize(
    ("path", "model"), [("toy", "toy"), ("toy/versions/3", "toy@3")], ids=["newest", "version"]
)
@pytest.mark.parametrize("named", [False, True])
async def test_tensorflow_serving_prediction_for_each_instance(
    make_client, make_tiny_model, make_settings, path, model, named
):
    path, model = path.replace("toy", "tiny").replace("3", "1"), model
    tiny = make_tiny_model(make_settings())
    async with make_client(tiny.classifier, tfserving=True) as client:
        instance = {"image_bytes": encode(JPEG)} if named else encode(JPEG)
        body = {"instances": [instance] * 2, "signature_name": "serving_default"}
        answer = await client.post(f"/v1/models/{path}:predict", json=body)
        ours = (await client.post("/v1/classify", content=JPEG)).json()["predictions"]
    first, second = answer.json()["predictions"]
    assert first == second
    assert first["classes"] == ours[0]["index"]
    assert first["label"] == ours[0]["label"]
    assert first["probabilities"] == [
        one["score"] for one in sorted(ours, key=lambda one: one["index"])
    ]


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        {"instances": []},
        {"instances": {}},
        {"instances": "aaaa"},
        {"instances": ["aaaa"]},
        {"instances": [[1, 2, 3]]},
        {"instances": [{"b64": 1}]},
        {"instances": [{"b64": "aaaa", "key": "a"}]},
        {"instances": [{"image_bytes": "aaaa"}]},
        {"instances": [{"a": {"b": {"b64": "aaaa"}}}]},
        {"instances": [{"b64": "aaaa"}], "signature_name": 1},
        {"instances": [{"b64": "aaaa"}], "inputs": []},
        {"instances": [{"b64": "not base64"}]},
        {"instances": [{"b64": "aaaa"}] * 33},
    ],
    ids=repr,
)
async def test_tensorflow_serving_refuses_what_is_not_a_list_of_images(
    client, stub_classifier, document
):
    response = await client.post("/v1/models/toy:predict", json=document)
    assert read_code(response) in {"bad_json", "invalid_argument", "bad_base64"}
    assert response.json()["error"] == response.json()["detail"]
    assert not stub_classifier.calls


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[" * 100_000, b'{"instances": NaN}', b"\xff", b'{"a":1,"a":1}']
)
async def test_tensorflow_serving_refuses_what_is_not_json(client, body):
    assert read_code(await client.post("/v1/models/toy:predict", content=body)) == "bad_json"


async def test_as_many_instances_as_images_are_allowed(client, stub_classifier):
    body = {"instances": [{"image_bytes": encode(b"img")}] * 32}
    assert read_code(await client.post("/v1/models/toy:predict", json=body)) == "ok"
    assert len(stub_classifier.calls) == 32


async def test_one_bad_instance_fails_the_request_because_the_form_has_no_place_for_it(client):
    body = {"instances": [encode(b"img"), encode(b"bad")]}
    response = await client.post("/v1/models/toy:predict", json=body)
    assert read_code(response) == "image_corrupt"


# ---- SageMaker ----


async def test_sagemaker_answers_as_our_own_route_does(client, stub_classifier):
    invoked = await client.post(
        "/invocations",
        content=b"img",
        headers={"x-amzn-sagemaker-custom-attributes": "model=toy, top_k=3,tta=hflip"},
    )
    ours = await client.post("/v1/classify?model=toy&top_k=3&tta=hflip", content=b"img")
    assert {**invoked.json(), "request_id": ""} == {**ours.json(), "request_id": ""}
    assert stub_classifier.calls[0] == stub_classifier.calls[1]


async def test_sagemaker_ping_says_no_while_not_ready(make_client, stub_classifier):
    async with make_client(sagemaker=True) as client:
        assert (await client.get("/ping")).status_code == 200
        stub_classifier.is_ready = False
        assert (await client.get("/ping")).status_code == 503


# ---- the table of bad input ----


def ask_torchserve(client, image, model="tiny", query=""):
    return client.post(f"/predictions/{quote(model, safe='')}{query}", content=image)


def ask_tfserving(client, image, model="tiny", query=""):
    body = {"instances": [encode(image)]}
    return client.post(f"/v1/models/{quote(model, safe='')}:predict{query}", json=body)


def ask_sagemaker(client, image, attributes=""):
    headers = {"x-amzn-sagemaker-custom-attributes": attributes}
    return client.post("/invocations", content=image, headers=headers)


@pytest.mark.parametrize("ask", [ask_torchserve, ask_tfserving, ask_sagemaker])
@pytest.mark.parametrize("name", FILES)
async def test_a_bad_file_gets_its_code_through_every_drop_in(real_client, ask, name):
    image, code = FILES[name]
    assert read_code(await ask(real_client, image)) == code
    assert read_code(await ask(real_client, JPEG)) == "ok"


@pytest.mark.parametrize("name", OPTIONS)
async def test_a_bad_option_gets_its_code_through_every_drop_in(real_client, name):
    options, code = OPTIONS[name]
    ((key, value),) = options.items()
    attributes = f"{key}={quote(str(value), safe='')}"
    assert read_code(await ask_sagemaker(real_client, JPEG, attributes)) == code
    for ask in (ask_torchserve, ask_tfserving):
        if key == "model":
            assert read_code(await ask(real_client, JPEG, model=value)) in NO_MODEL
        refused = await ask(real_client, JPEG, query=f"?{attributes}")
        assert read_code(refused) == "invalid_argument"


@pytest.mark.parametrize("ask", [ask_torchserve, ask_tfserving, ask_sagemaker])
async def test_what_will_be_refused_is_refused_before_its_body_is_read(
    make_client, stub_classifier, monkeypatch, ask
):
    def refuse(_options):
        raise RequestError(ErrorCode.OVERLOADED, "there is no room")

    monkeypatch.setattr(stub_classifier, "refuse_early", refuse)
    drop_ins = dict.fromkeys(DROP_INS, True)
    async with make_client(max_body_bytes=100, **drop_ins) as client:
        # Read, this body would be too large.
        assert read_code(await ask(client, bytes(200))) == "overloaded"


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("path", ["/predictions/toy", "/invocations"])
async def test_a_wrong_method_is_refused(client, method, path):
    assert read_code(await client.request(method, path)) == "method_not_allowed"


@pytest.mark.parametrize("ask", [ask_torchserve, ask_tfserving, ask_sagemaker])
async def test_a_body_over_the_limit_is_refused_by_every_drop_in(make_client, ask):
    drop_ins = dict.fromkeys(DROP_INS, True)
    async with make_client(max_body_bytes=100, **drop_ins) as client:
        assert read_code(await ask(client, bytes(200))) == "body_too_large"
