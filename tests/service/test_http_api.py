"""The HTTP edge over a stub classifier: what goes in, what comes out, what it refuses to read."""

from __future__ import annotations

import asyncio
import base64
import json

import httpx
import pytest
from pydantic import TypeAdapter

from service import http_edge, http_schema
from service.classifier import Options
from service.errors import ErrorCode, RequestError
from service.http_api import STATUS, HttpApi, build_http_app
from service.http_body import parse_upload
from service.http_protocol import HttpConnection
from service.settings import Settings

PATIENCE_S = 30  # for what takes milliseconds on a machine with nothing else to do
JSON = {"content-type": "application/json"}
FORM = "multipart/form-data; boundary=x"


def check_problem(response, code, status=None):
    """The answer is a problem document of this code; returns it."""
    assert response.headers["content-type"] == "application/problem+json"
    problem = TypeAdapter(http_schema.Problem).validate_python(response.json())
    assert problem["code"] == code
    assert problem["status"] == response.status_code == STATUS[ErrorCode(code)]
    assert problem["request_id"] == response.headers["x-request-id"]
    assert status in (None, response.status_code)
    return problem


def test_every_error_code_has_an_http_status():
    assert set(STATUS) == set(ErrorCode)


# ---- one image ----


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize(
    "content_type", ["image/jpeg", "application/octet-stream", "text/plain", None]
)
async def test_a_raw_body_is_one_image_whatever_its_type(
    http_client, stub_classifier, method, content_type
):
    headers = {"content-type": content_type} if content_type else {}
    response = await http_client.request(method, "/v1/classify", content=b"img", headers=headers)
    assert response.status_code == 200
    assert stub_classifier.calls == [(b"img", Options())]
    assert response.json() == {
        "request_id": response.headers["x-request-id"],
        "model": "toy",
        "version": 3,
        "predictions": [
            {"label": "cát", "index": 2, "score": 0.75},
            {"label": "dog", "index": 0, "score": 0.25},
        ],
        "abstained": False,
        "decision": None,
        "batch_views": 1,
        "image": {"width": 4, "height": 2, "format": "png"},
    }
    assert response.headers["server-timing"] == (
        "decode;dur=1.000, queue;dur=2.000, infer;dur=3.000, total;dur=6.500"
    )
    assert response.headers["x-content-type-options"] == "nosniff"


async def test_options_reach_the_classifier(http_client, stub_classifier):
    await http_client.post(
        "/v1/classify?model=toy@3&top_k=7&tta=hflip&priority=low",
        content=b"img",
        headers={"x-request-timeout-ms": "250.5"},
    )
    assert stub_classifier.calls[0][1] == Options(
        model="toy@3", top_k=7, tta="hflip", timeout_ms=250.5, priority="low"
    )


@pytest.mark.parametrize(
    "query",
    [
        "explain=cam",
        "top_K=3",
        "top_k=1&top_k=2",
        "top_k=",
        "top_k=five",
        "top_k=1.5",
        "top_k=1_0",
        "top_k=%2B1",
        "top_k=99999999999",
        "top_k=true",
        "model=%ff",
        "&".join(f"model=a{i}" for i in range(40)),
        "x",
    ],
)
async def test_an_option_that_is_unknown_repeated_or_misspelt_is_refused(http_client, query):
    response = await http_client.post(f"/v1/classify?{query}", content=b"img")
    check_problem(response, "invalid_argument")


@pytest.mark.parametrize("value", ["", "soon", "nan", "inf", "1e18", "0x10", "1,5", " 5 s"])
async def test_a_deadline_that_is_not_a_number_is_refused(http_client, value):
    response = await http_client.post(
        "/v1/classify", content=b"img", headers={"x-request-timeout-ms": value}
    )
    check_problem(response, "invalid_argument")


# ---- several images ----


async def test_a_form_is_answered_item_by_item(http_client, stub_classifier):
    files = [("image", b"one"), ("file", b"bad"), ("image", b"three\r\n--")]
    response = await http_client.post("/v1/classify?top_k=2", files=files)
    assert response.status_code == 200
    assert [image for image, _ in stub_classifier.calls] == [b"one", b"bad", b"three\r\n--"]
    first, second, third = response.json()["results"]
    assert (first["item"], first["status"], first["model"]) == (0, 200, "toy")
    assert second == {
        "item": 1,
        "status": 422,
        "error": {"code": "image_corrupt", "detail": "damaged"},
    }
    assert third["predictions"][0]["label"] == "cát"
    assert "server-timing" in response.headers


async def test_a_form_with_one_file_is_answered_as_a_list(http_client):
    response = await http_client.post("/v1/classify", files={"image": b"one"})
    assert len(response.json()["results"]) == 1


async def test_json_images_are_answered_like_a_form_and_json_image_like_a_body(
    http_client, stub_classifier
):
    one, two = (base64.b64encode(image).decode() for image in (b"\xfb\xff", b"two"))
    single = await http_client.post("/v1/classify", json={"image": one})
    uri = f"data:image/png;base64,{two}"
    several = await http_client.post("/v1/classify", json={"images": [one, uri]})
    assert single.json()["model"] == "toy"
    assert [result["item"] for result in several.json()["results"]] == [0, 1]
    assert [image for image, _ in stub_classifier.calls] == [b"\xfb\xff", b"\xfb\xff", b"two"]


async def test_a_list_without_any_good_image_has_no_timings(http_client):
    response = await http_client.post("/v1/classify", files={"image": b"bad"})
    assert response.status_code == 200
    assert "server-timing" not in response.headers


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "bad_json"),
        (b"\xff\xfe", "bad_json"),
        (b"[]", "bad_json"),
        (b'"image"', "bad_json"),
        (b'{"image": NaN}', "bad_json"),
        (b'{"image": -Infinity}', "bad_json"),
        (b'{"image": "aaaa", "image": "aaaa"}', "bad_json"),
        (b'{"image": "aaaa"', "bad_json"),
        (b'{"image": "aaaa"} {}', "bad_json"),
        (b'{"image": ' + b"[" * 100_000, "bad_json"),
        (b'{"image": ' + b"[" * 60 + b"]" * 60 + b"}", "invalid_argument"),
        (b'{"image": ' + b"9" * 5000 + b"}", "bad_json"),
        (b"{}", "invalid_argument"),
        (b'{"image": 1}', "invalid_argument"),
        (b'{"image": null}', "invalid_argument"),
        (b'{"image": ["aaaa"]}', "invalid_argument"),
        (b'{"images": "aaaa"}', "invalid_argument"),
        (b'{"images": []}', "invalid_argument"),
        (b'{"images": ["aaaa", 1]}', "invalid_argument"),
        (b'{"image": "aaaa", "images": ["aaaa"]}', "invalid_argument"),
        (b'{"image": "aaaa", "top_k": 3}', "invalid_argument"),
        (json.dumps({"images": ["aaaa"] * 33}).encode(), "invalid_argument"),
        (b'{"images": [' + b"1," * 1_000_000 + b"1]}", "invalid_argument"),
        (b'{"image": "a"}', "bad_base64"),
        (b'{"image": "aaaa aaaa"}', "bad_base64"),
        (b'{"image": "aaaa\\n"}', "bad_base64"),
        (b'{"image": "-_-_"}', "bad_base64"),
        (b'{"image": "aaaaa==="}', "bad_base64"),
        (b'{"image": "\\u00e9aaa"}', "bad_base64"),
        (b'{"image": "\\ud800aaa"}', "bad_base64"),
        (b'{"image": "data:image/png,aaaa"}', "bad_base64"),
        (b'{"image": "http://127.0.0.1/"}', "url_not_allowed"),
        (b'{"image": "HTTPS://a.b/c.jpg"}', "url_not_allowed"),
        (b'{"image": "file:///etc/passwd"}', "url_not_allowed"),
        (b'{"image": "gopher://a"}', "url_not_allowed"),
    ],
)
async def test_json_that_is_not_exactly_right_is_refused(http_client, stub_classifier, body, code):
    check_problem(await http_client.post("/v1/classify", content=body, headers=JSON), code)
    assert not stub_classifier.calls


def part(name="image", data=b"img"):
    return b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), data)


@pytest.mark.parametrize(
    ("content_type", "body", "code"),
    [
        ("multipart/form-data", part() + b"--x--\r\n", "invalid_argument"),
        ("multipart/form-data; boundary=", part() + b"--x--\r\n", "invalid_argument"),
        (f"multipart/form-data; boundary={'y' * 5000}", part(), "invalid_argument"),
        ("multipart/form-data; boundary=z", part() + b"--x--\r\n", "invalid_argument"),
        (FORM, b"", "invalid_argument"),
        (FORM, b"--x--\r\n", "invalid_argument"),
        (FORM, part(), "invalid_argument"),
        (FORM, part("photo") + b"--x--\r\n", "invalid_argument"),
        (FORM, part() + part("top_k", b"3") + b"--x--\r\n", "invalid_argument"),
        (FORM, b"--x\r\n\r\nimg\r\n--x--\r\n", "invalid_argument"),
        (FORM, b"--x\r\nno colon\r\n\r\nimg\r\n--x--\r\n", "invalid_argument"),
        (FORM, b"--x\r\n" + b"a: b\r\n" * 100_000 + b"\r\n--x--\r\n", "invalid_argument"),
        (FORM, b"--x\r\na: " + b"b" * 1_000_000 + b"\r\n\r\n--x--\r\n", "invalid_argument"),
        (FORM, part() * 33 + b"--x--\r\n", "invalid_argument"),
        (FORM, part() + b"\r\n--xa" * 1_000_000, "invalid_argument"),
    ],
)
async def test_a_form_that_is_not_exactly_right_is_refused(
    http_client, stub_classifier, content_type, body, code
):
    headers = {"content-type": content_type}
    check_problem(await http_client.post("/v1/classify", content=body, headers=headers), code)
    assert not stub_classifier.calls


async def test_an_item_that_is_no_image_at_all_disturbs_no_other(http_client, stub_classifier):
    listed = await http_client.post(
        "/v1/classify", json={"images": ["aaaa", "ftp://a/b", "a", "aaaa"]}
    )
    form = await http_client.post(
        "/v1/classify", files=[("image", b"http://127.0.0.1/"), ("image", b"img")]
    )
    codes = [[r.get("error", {}).get("code") for r in x.json()["results"]] for x in (listed, form)]
    assert codes == [[None, "url_not_allowed", "bad_base64", None], ["url_not_allowed", None]]
    assert len(stub_classifier.calls) == 3


async def test_a_nested_form_is_just_a_file_that_is_no_image(http_client, stub_classifier):
    inner = b'--y\r\nContent-Disposition: form-data; name="image"\r\n\r\nimg\r\n--y--'
    body = part(data=inner) + b"--x--\r\n"
    await http_client.post("/v1/classify", content=body, headers={"content-type": FORM})
    assert stub_classifier.calls[0][0] == inner


async def test_data_that_looks_like_the_beginning_of_a_boundary_survives():
    data = b"\r\n--\r\n-\r\n--y\r\n--" + bytes(range(256)) + b"\r"
    body = b'--xx\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + data + b"\r\n--xx--"
    upload = parse_upload(b'multipart/form-data; boundary="xx"', body, max_images=4)
    assert upload.images == (data,)


# ---- probes ----


async def test_a_hanging_thread_is_what_ends_life(http_client, stub_classifier):
    assert (await http_client.get("/livez")).json() == {"status": "alive"}
    stub_classifier.is_stuck = True
    check_problem(await http_client.get("/livez"), "not_ready")
    assert (await http_client.get("/readyz")).status_code == 200


# ---- ids, errors, routing ----


async def test_a_request_id_is_echoed(http_client):
    response = await http_client.post(
        "/v1/classify", content=b"img", headers={"x-request-id": "Az09._-"}
    )
    assert response.headers["x-request-id"] == response.json()["request_id"] == "Az09._-"


@pytest.mark.parametrize("offered", ["", "a" * 65, "a b", 'a"', "ä", "a;b"])
async def test_a_bad_request_id_is_replaced(http_client, offered):
    headers = {"x-request-id": offered.encode("latin-1")}
    response = await http_client.get("/livez", headers=headers)
    assert response.headers["x-request-id"] != offered
    assert len(response.headers["x-request-id"]) == 32


async def test_unknown_errors_are_answered_without_their_text_and_logged(
    http_client, stub_classifier, caplog
):
    stub_classifier.error = KeyError("secret path")
    problem = check_problem(await http_client.post("/v1/classify", content=b"img"), "internal", 500)
    assert "secret" not in json.dumps(problem)
    assert "secret path" in caplog.text
    assert problem["request_id"] in caplog.text


@pytest.mark.parametrize(
    ("retry_after_s", "header"), [(None, "1"), (0.0, "1"), (0.2, "1"), (2.1, "3")]
)
@pytest.mark.parametrize("code", [ErrorCode.OVERLOADED, ErrorCode.RATE_LIMITED])
async def test_refusals_that_pass_say_when_to_come_back(
    http_client, stub_classifier, code, retry_after_s, header
):
    stub_classifier.error = RequestError(code, "full", retry_after_s=retry_after_s)
    response = await http_client.post("/v1/classify", content=b"img")
    check_problem(response, code.value)
    assert response.headers["retry-after"] == header


@pytest.mark.parametrize(
    "path", ["/nothing", "/v1", "/v1/classify/", "/v1/models/a/b", "//", "/V1"]
)
async def test_an_unknown_path_is_a_problem_document(http_client, path):
    check_problem(await http_client.get(f"http://fivecrop{path}"), "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/classify", "POST, PUT"),
        ("DELETE", "/v1/classify", "POST, PUT"),
        ("POST", "/livez", "GET, HEAD"),
        ("OPTIONS", "/v1/models/toy", "GET, HEAD"),
        ("GET", "/v1/models/toy/labels/canary", "DELETE, PUT"),
        ("OPTIONS", "/v1/models/toy:load", "POST"),
    ],
)
async def test_a_wrong_method_names_the_right_ones(http_client, method, path, allow):
    response = await http_client.request(method, path)
    check_problem(response, "method_not_allowed")
    assert response.headers["allow"] == allow


async def test_content_encodings_are_refused(http_client):
    for encoding in ("gzip", "br", "deflate, gzip"):
        response = await http_client.post(
            "/v1/classify", content=b"img", headers={"content-encoding": encoding}
        )
        check_problem(response, "unsupported_encoding")


async def test_the_edge_works_inside_another_application(stub_classifier, metrics, make_settings):
    from starlette.applications import Starlette
    from starlette.routing import Mount

    inner = build_http_app(stub_classifier, metrics, make_settings())
    transport = httpx.ASGITransport(Starlette(routes=[Mount("/", inner)]))
    async with httpx.AsyncClient(transport=transport, base_url="http://fivecrop") as client:
        assert (await client.post("/v1/classify", content=b"img")).status_code == 200
        check_problem(await client.get("/v1/classify"), "method_not_allowed")
        check_problem(await client.get("/nothing"), "not_found")
        check_problem(await client.post("/v1/classify?x=1", content=b"i"), "invalid_argument")
    text = metrics.render()[0].decode()
    assert 'route="unmatched"' in text
    assert 'code="method_not_allowed",route="/v1/classify"' in text


# ---- the other routes ----


async def test_models_are_described(http_client):
    listed = (await http_client.get("/v1/models")).json()["models"]
    assert listed == [(await http_client.get("/v1/models/toy@3")).json()]
    assert listed[0]["is_default"] is True
    labels = (await http_client.get("/v1/models/toy/labels")).json()
    assert labels == {"model": "toy", "version": 3, "labels": ["dog", "bird", "cát"]}


@pytest.mark.parametrize("name", ["nope", "toy@4", "..", "%2e%2e", "..%5c", "%00", "a" * 10_000])
async def test_unknown_models_are_not_found(http_client, name):
    response = await http_client.get(f"/v1/models/{name}")
    assert response.status_code == 404
    assert response.json()["code"] in ("model_not_found", "not_found")


async def test_models_take_no_options(http_client):
    check_problem(await http_client.get("/v1/models?verbose=1"), "invalid_argument")


async def test_readiness_follows_the_classifier_and_liveness_does_not(http_client, stub_classifier):
    assert (await http_client.get("/readyz")).json() == {"status": "ready"}
    stub_classifier.is_ready = False
    not_ready = await http_client.get("/readyz")
    check_problem(not_ready, "not_ready", 503)
    assert not_ready.headers["retry-after"] == "1"
    stub_classifier.is_draining = True
    check_problem(await http_client.get("/readyz"), "draining", 503)
    assert (await http_client.get("/livez")).json() == {"status": "alive"}


async def test_metrics_count_requests_by_template_and_code(http_client, stub_classifier):
    await http_client.post("/v1/classify", content=b"img")
    await http_client.post("/v1/classify", content=b"bad")
    await http_client.get("/v1/models/toy")
    await http_client.get("/wp-login.php")
    scrape = await http_client.get("/metrics")
    assert scrape.headers["content-type"].startswith("text/plain")
    for labels in (
        'code="ok",route="/v1/classify",transport="http"',
        'code="image_corrupt",route="/v1/classify",transport="http"',
        'code="ok",route="/v1/models/{name}",transport="http"',
        'code="not_found",route="unmatched",transport="http"',
    ):
        assert f"fivecrop_requests_total{{{labels}}} 1.0" in scrape.text
    assert 'fivecrop_inflight_requests{transport="http"} 0.0' in scrape.text


# ---- the contract ----


async def test_openapi_describes_exactly_the_routes_that_exist(
    http_client, stub_classifier, metrics
):
    document = (await http_client.get("/openapi.json")).json()
    described = {
        (path, method.upper()) for path, item in document["paths"].items() for method in item
    }
    routes = HttpApi(stub_classifier, metrics, Settings()).routes()
    existing = {
        (route.path, method)
        for route in routes
        if route.include_in_schema
        for method in route.methods - {"HEAD"}
    }
    assert described == existing
    operations = [o for item in document["paths"].values() for o in item.values()]
    assert len({o["operationId"] for o in operations}) == len(operations)


async def test_openapi_references_resolve_and_every_schema_is_used(http_client):
    text = (await http_client.get("/openapi.json")).text
    schemas = json.loads(text)["components"]["schemas"]
    used = {piece.split('"')[0] for piece in text.split("#/components/schemas/")[1:]}
    assert used == set(schemas)


@pytest.mark.parametrize(
    ("schema", "method", "path", "request_parts"),
    [
        ("Single", "POST", "/v1/classify", {"content": b"img"}),
        ("Single", "PUT", "/v1/classify", {"json": {"image": "aaaa"}}),
        ("Several", "POST", "/v1/classify", {"files": [("image", b"bad"), ("image", b"img")]}),
        ("Models", "GET", "/v1/models", {}),
        ("Model", "GET", "/v1/models/toy", {}),
        ("Labels", "GET", "/v1/models/toy/labels", {}),
        ("Alive", "GET", "/livez", {}),
        ("Ready", "GET", "/readyz", {}),
        ("Problem", "POST", "/v1/classify?x=y", {"content": b"img"}),
        ("Problem", "GET", "/v1/models/nope", {}),
    ],
)
async def test_answers_match_their_schemas(http_client, schema, method, path, request_parts):
    """The schemas forbid extra keys, so this holds in both directions."""
    response = await http_client.request(method, path, **request_parts)
    TypeAdapter(getattr(http_schema, schema)).validate_json(response.content)
    document = (await http_client.get("/openapi.json")).json()
    template = path.partition("?")[0].replace("/toy", "/{name}").replace("/nope", "/{name}")
    described = document["paths"][template][method.lower()]["responses"]
    content = described[str(response.status_code)]["content"]
    media_type = response.headers["content-type"]
    assert f"schemas/{schema}" in json.dumps(content[media_type])


# ---- over a real socket ----


async def exchange(port, *pieces, pause_s=0.0):
    """Sends the pieces and returns everything that the server answers until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_s)
        return await asyncio.wait_for(reader.read(), PATIENCE_S)
    finally:
        writer.close()


HEAD = b"POST /v1/classify HTTP/1.1\r\nHost: a\r\n"


@pytest.fixture
def short_linger(monkeypatch):
    """For clients that wait for the connection to end."""
    monkeypatch.setattr(http_edge, "LINGER_S", 0.1)


async def test_a_declared_length_over_the_limit_is_refused_before_the_body_is_read(
    stub_classifier, metrics, make_settings, serving_http, short_linger
):
    app = build_http_app(stub_classifier, metrics, make_settings(max_body_bytes=1000))
    async with serving_http(app) as port:
        answer = await exchange(
            port, HEAD + b"Content-Length: 1001\r\nExpect: 100-continue\r\n\r\n"
        )
    assert answer.startswith(b"HTTP/1.1 413 ")  # and not 100 Continue
    assert b"connection: close" in answer.lower()
    assert b'"code":"body_too_large"' in answer


async def test_a_chunked_body_is_refused_as_soon_as_it_is_over_the_limit(
    stub_classifier, metrics, make_settings, serving_http, short_linger
):
    app = build_http_app(stub_classifier, metrics, make_settings(max_body_bytes=1000))
    async with serving_http(app) as port:
        # The last chunk never comes: who waits for it, hangs.
        answer = await exchange(
            port,
            HEAD + b"Transfer-Encoding: chunked\r\n\r\n",
            b"3e8\r\n" + b"a" * 1000 + b"\r\n",
            b"1\r\na\r\n",
            pause_s=0.02,
        )
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()
    assert not stub_classifier.calls


async def test_a_chunked_body_of_exactly_the_limit_is_answered(
    stub_classifier, metrics, make_settings, serving_http
):
    app = build_http_app(stub_classifier, metrics, make_settings(max_body_bytes=1000))
    async with serving_http(app) as port:
        answer = await exchange(
            port,
            HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"1\r\na\r\n" * 1000 + b"0\r\n\r\n",
        )
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert stub_classifier.calls[0][0] == b"a" * 1000


async def test_a_client_that_sends_too_much_gets_to_read_why(
    stub_classifier, metrics, make_settings, serving_http, monkeypatch
):
    """Without reading on, the kernel resets the connection and takes the answer with it."""
    monkeypatch.setattr(http_edge, "LINGER_S", PATIENCE_S)
    app = build_http_app(stub_classifier, metrics, make_settings(max_body_bytes=1000))
    async with serving_http(app) as port, httpx.AsyncClient(timeout=PATIENCE_S) as client:
        response = await client.post(
            f"http://127.0.0.1:{port}/v1/classify", content=b"a" * 20_000_000
        )
    check_problem(response, "body_too_large")
    assert response.headers["connection"] == "close"


async def test_a_body_that_does_not_arrive_is_not_waited_for(
    stub_classifier, metrics, make_settings, serving_http
):
    app = build_http_app(stub_classifier, metrics, make_settings(request_read_timeout_s=0.1))
    async with serving_http(app) as port:
        answer = await exchange(port, HEAD + b"Content-Length: 10\r\n\r\nabc")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in answer
    assert b"connection: close" in answer.lower()


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: -1\r\n",
        b"Content-Length: 9999999999999999999999999\r\n",
        b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 3\r\nContent-Length: 4\r\n",
    ],
)
async def test_ambiguous_lengths_are_refused(
    stub_classifier, metrics, make_settings, serving_http, lines
):
    app = build_http_app(stub_classifier, metrics, make_settings())
    async with serving_http(app) as port:
        answer = await exchange(port, HEAD + lines + b"\r\nabc")
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 413 "))
    assert not stub_classifier.calls


@pytest.mark.parametrize(
    "name", ["Content-Type", "Content-Encoding", "X-Request-Timeout-Ms", "X-Request-Id", "Host"]
)
async def test_a_header_given_twice_is_refused(
    stub_classifier, metrics, make_settings, serving_http, name
):
    app = build_http_app(stub_classifier, metrics, make_settings())
    twice = f"{name}: 1\r\n{name}: 2\r\n".encode()
    last = b"Accept: a\r\nAccept: b\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc"
    async with serving_http(app) as port:
        answer = await exchange(port, HEAD + twice + b"Content-Length: 3\r\n\r\nabc" + HEAD + last)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"code":"invalid_argument"' in answer
    assert b"HTTP/1.1 200 " in answer, "others may be repeated"
    assert len(stub_classifier.calls) == 1


@pytest.mark.parametrize("server", [HttpConnection, "httptools"])
async def test_a_client_that_leaves_takes_its_work_with_it(
    stub_classifier, metrics, make_settings, serving_http, server
):
    stub_classifier.gate = asyncio.Event()
    app = build_http_app(stub_classifier, metrics, make_settings())
    async with serving_http(app, server) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD + b"Content-Length: 3\r\n\r\nabc")
        await asyncio.wait_for(stub_classifier.arrived.wait(), PATIENCE_S)
        writer.close()
        await asyncio.wait_for(stub_classifier.cancelled.wait(), PATIENCE_S)
        await asyncio.sleep(0.01)
    text = metrics.render()[0].decode()
    assert 'code="cancelled",route="/v1/classify",transport="http"} 1.0' in text
    assert 'fivecrop_inflight_requests{transport="http"} 0.0' in text


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_error(
    stub_classifier, metrics, make_settings, serving_http, caplog
):
    app = build_http_app(stub_classifier, metrics, make_settings())
    async with serving_http(app) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD + b"Content-Length: 30\r\n\r\nabc")
        await writer.drain()
        writer.close()
        async with asyncio.timeout(PATIENCE_S):
            while 'code="cancelled"' not in metrics.render()[0].decode():
                await asyncio.sleep(0.01)
    assert not caplog.records


async def test_a_connection_carries_many_requests(
    stub_classifier, metrics, make_settings, serving_http
):
    app = build_http_app(stub_classifier, metrics, make_settings())
    request = HEAD + b"Content-Length: 3\r\n\r\nabc"
    last = HEAD + b"Connection: close\r\nContent-Length: 3\r\n\r\nabc"
    async with serving_http(app) as port:
        pipelined = await exchange(port, request * 20 + last)
    assert pipelined.count(b"HTTP/1.1 200 ") == 21


async def test_a_client_that_never_stops_sending_is_cut_off(
    stub_classifier, metrics, make_settings, serving_http, short_linger
):
    app = build_http_app(stub_classifier, metrics, make_settings(max_body_bytes=1000))
    async with serving_http(app) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD + b"Content-Length: 1000000000\r\n\r\n")
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            await asyncio.wait_for(send_for_ever(writer), PATIENCE_S)
        writer.close()


async def send_for_ever(writer):
    while True:
        writer.write(b"a" * 10_000)
        await writer.drain()
        await asyncio.sleep(0.001)
