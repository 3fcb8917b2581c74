"""No route and no rpc is open by accident, and each key opens what it is for."""

from __future__ import annotations

import asyncio
import datetime
import re
from pathlib import Path
from types import SimpleNamespace

import grpc
import httpx
import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from service import http_pages
from service.access import CALLER, Access, AccessControl
from service.api_keys import KeyFile, KeyRing, KeyScope, make_key, write_keys
from service.http_api import build_http_app
from service.http_edge import Endpoint
from service.proto import image_classifier_pb2 as messages
from service.proto import rpc_status_pb2
from service.proto.image_classifier_pb2_grpc import ImageClassifierStub

WEB = Path(http_pages.__file__).parent / "web"

# Open on purpose: probes have no keys, browsers send none for a page, and what the API is like is
# no secret. Nothing else may be.
OPEN_PATHS = {
    *("/livez", "/readyz", "/ping", "/v2/health/live", "/v2/health/ready"),
    *("/", "/docs", "/docs.css", "/docs.js", "/openapi.json", "/schema.json"),
    *("/playground", "/playground.json", "/mark.svg"),
    *(f"/playground/{path.name}" for path in (WEB / "playground").iterdir()),
}
OPEN_RPCS = {
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
}

LIMIT_S = 60  # only bounds a hang


@pytest.fixture
def keys(tmp_path):
    """A key file with one key of each scope, and the text of each."""
    made = {scope.value: make_key([scope]) for scope in KeyScope}
    path = tmp_path / "keys.json"
    write_keys(path, KeyRing(keys=tuple(kept for _, kept in made.values())))
    return SimpleNamespace(
        path=path,
        control=AccessControl(KeyFile(path)),
        ids={scope: kept.id for scope, (_, kept) in made.items()},
        **{scope: text for scope, (text, _) in made.items()},
    )


@pytest.fixture
async def locked(keys, stub_classifier, metrics, make_settings, serving_grpc):
    """Both edges behind keys: `http`, a client; `app`; `channel`."""
    settings = make_settings(api_keys=keys.path, torchserve=True, tfserving=True, sagemaker=True)
    app = build_http_app(stub_classifier, metrics, settings, keys.control, {"routes": []})
    transport = httpx.ASGITransport(app)
    async with (
        httpx.AsyncClient(transport=transport, base_url="http://fivecrop") as http,
        serving_grpc(stub_classifier, metrics, settings, keys.control) as served,
    ):
        yield SimpleNamespace(
            http=http, app=app, channel=served.channel, stub=ImageClassifierStub(served.channel)
        )


def bearer(key):
    return {"authorization": f"Bearer {key}"}


def read_code(error):
    details = dict(error.trailing_metadata())["grpc-status-details-bin"]
    packed = rpc_status_pb2.Status.FromString(details).details[0]
    return rpc_status_pb2.ErrorInfo.FromString(packed.value).reason


# ---- every route ----


async def test_every_route_but_the_listed_ones_asks_for_a_key_of_its_scope(locked, keys):
    open_paths = set()
    for route in locked.app.router.routes:
        path = re.sub("{name}|{model}", "toy", route.path).replace("{version}", "3")
        for method in route.methods - {"HEAD"}:
            keyless = await locked.http.request(method, path)
            if keyless.status_code != 401:
                open_paths.add(route.path)
                continue
            assert keyless.json()["code"] == "unauthenticated"
            assert keyless.headers["www-authenticate"] == "Bearer"
            for scope in KeyScope:
                headers = bearer(getattr(keys, scope))
                answer = await locked.http.request(method, path, headers=headers)
                is_let_in = answer.status_code not in (401, 403)
                assert is_let_in == (route.endpoint.access.value is scope), (route.path, scope)
    assert open_paths == OPEN_PATHS
    assert len(locked.app.router.routes) > len(OPEN_PATHS)


@pytest.mark.parametrize(("days", "is_let_in"), [(1, True), (0, True), (-1, False)])
async def test_a_key_is_valid_through_its_last_day(locked, keys, days, is_let_in):
    last = datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=days)
    text, kept = make_key([KeyScope.INFER], expires=last)
    write_keys(keys.path, KeyRing(keys=(kept,)))
    locked.app._control._keys = KeyFile(keys.path)
    answer = await locked.http.get("/v1/models", headers=bearer(text))
    error = await call(
        locked.channel, "/fivecrop.v1.ImageClassifier/Models", (("x-api-key", text),)
    )
    if is_let_in:
        assert (answer.status_code, error) == (200, None)
        return
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    assert "expired" in answer.json()["detail"]
    assert (error.code(), error.details()) == (
        grpc.StatusCode.UNAUTHENTICATED,
        "the API key has expired",
    )
    wrong = text[:-2] + ("AA" if text[-2:] != "AA" else "BB")
    answer = await locked.http.get("/v1/models", headers=bearer(wrong))
    assert "expired" not in answer.json()["detail"]  # only whoever has the key is told


async def test_a_route_that_declares_no_access_cannot_answer(locked, caplog):
    """The control of the walk above: what is added without a thought is closed."""
    locked.app.router.routes.append(Route("/oops", lambda request: PlainTextResponse("secret")))
    answer = await locked.http.get("/oops")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    with pytest.raises(TypeError):
        Endpoint(lambda scope, receive: None)


async def test_nothing_of_the_body_is_read_for_a_stranger(locked, stub_classifier):
    async def body():
        raise AssertionError("read")
        yield b""

    answer = await locked.http.post("/v1/classify", content=body())
    assert answer.status_code == 401
    assert not stub_classifier.calls


# ---- every rpc ----


async def list_rpcs(channel, key):
    """Returns every method of every service that reflection tells of."""
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest

    async def ask(**what):
        call = stub.ServerReflectionInfo(
            iter([request(**what)]), metadata=tuple(bearer(key).items()), timeout=LIMIT_S
        )
        return await anext(answer async for answer in call)

    found = set()
    for service in (await ask(list_services="")).list_services_response.service:
        answer = await ask(file_containing_symbol=service.name)
        for text in answer.file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(text)
            found |= {
                f"/{file.package}.{one.name}/{method.name}"
                for one in file.service
                for method in one.method
                if f"{file.package}.{one.name}" == service.name
            }
    return found


async def call(channel, method, metadata=()):
    """Returns the error that a call with one empty message ends in, or None when it is let in."""
    # Bytes on the wire are the same whether a method streams or not.
    answers = channel.unary_stream(method)(b"", metadata=metadata, timeout=LIMIT_S)
    try:
        await answers.read()
    except grpc.aio.AioRpcError as error:
        return error
    answers.cancel()
    return None


async def test_every_rpc_but_health_asks_for_a_key_of_its_scope(locked, keys):
    rpcs = await list_rpcs(locked.channel, keys.infer)
    assert len(rpcs) > 5
    open_rpcs, absent_rpcs = set(), set()
    for rpc in rpcs:
        refused = await call(locked.channel, rpc)
        if refused is None or refused.code() is not grpc.StatusCode.UNAUTHENTICATED:
            is_absent = refused is not None and refused.code() is grpc.StatusCode.UNIMPLEMENTED
            (absent_rpcs if is_absent else open_rpcs).add(rpc)
            continue
        assert read_code(refused) == "unauthenticated"
        letting_in = [
            scope
            for scope in KeyScope
            if (error := await call(locked.channel, rpc, (("x-api-key", getattr(keys, scope)),)))
            is None
            or error.code() is not grpc.StatusCode.PERMISSION_DENIED
        ]
        assert len(letting_in) == 1, rpc
    assert open_rpcs == OPEN_RPCS
    assert absent_rpcs == {"/grpc.health.v1.Health/List"}


async def test_a_refused_call_names_itself_and_is_counted(locked, metrics):
    refused = await call(locked.channel, "/fivecrop.v1.ImageClassifier/Models")
    assert dict(refused.trailing_metadata())["x-request-id"]
    counted = 'code="unauthenticated",route="/fivecrop.v1.ImageClassifier/Models"'
    assert counted in metrics.render()[0].decode()


async def test_a_stranger_is_refused_before_the_message_arrives(locked):
    async def never():
        await locked_out.wait()
        yield b""

    locked_out = asyncio.Event()
    async with asyncio.timeout(LIMIT_S):
        answers = locked.channel.stream_stream("/fivecrop.v1.ImageClassifier/Classify")(never())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await answers.read()
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


# ---- keys ----


@pytest.mark.parametrize(
    "headers",
    [
        lambda keys: [("Authorization", f"Bearer {keys.infer}")],
        lambda keys: [("Authorization", f"bearer  {keys.infer} ")],
        lambda keys: [("X-API-Key", keys.infer)],
    ],
)
async def test_a_key_comes_in_either_header(locked, keys, headers):
    answer = await locked.http.get("/v1/models", headers=headers(keys))
    assert answer.status_code == 200
    metadata = [(name.lower(), value) for name, value in headers(keys)]
    assert (await locked.stub.Models(messages.ModelsRequest(), metadata=metadata)).models


@pytest.mark.parametrize(
    "headers",
    [
        lambda keys: [],
        lambda keys: [("Authorization", "")],
        lambda keys: [("Authorization", keys.infer)],
        lambda keys: [("Authorization", "Bearer")],
        lambda keys: [("Authorization", f"Basic {keys.infer}")],
        lambda keys: [("Authorization", f"Bearer {keys.infer}x")],
        lambda keys: [("X-API-Key", "")],
        lambda keys: [("X-API-Key", f"Bearer {keys.infer}")],
        lambda keys: [("X-API-Key", keys.infer), ("X-API-Key", "other")],
        lambda keys: [("X-API-Key", keys.infer), ("Authorization", f"Bearer {keys.infer}")],
    ],
)
async def test_anything_but_one_valid_key_is_refused(locked, keys, headers):
    answer = await locked.http.get("/v1/models", headers=headers(keys))
    assert answer.json()["code"] == "unauthenticated"
    metadata = [(name.lower(), value) for name, value in headers(keys)]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await locked.stub.Models(messages.ModelsRequest(), metadata=metadata)
    assert read_code(caught.value) == "unauthenticated"


async def test_a_key_in_the_address_is_no_key(locked, keys):
    """It would be in the logs of every proxy on the way."""
    answer = await locked.http.get("/v1/models", params={"api_key": keys.infer})
    assert answer.status_code == 401


async def test_an_answer_never_holds_the_key_that_was_sent(locked, keys):
    for key in (keys.infer, keys.metrics, keys.infer + "x"):
        answer = await locked.http.get("/v1/models", headers=bearer(key))
        assert key not in answer.text + str(answer.headers)


async def test_the_work_of_a_request_knows_the_id_of_its_key(locked, keys, stub_classifier):
    seen = []
    classify = stub_classifier.classify

    async def look(image, options):
        seen.append(CALLER.get())
        return await classify(image, options)

    stub_classifier.classify = look
    for headers in (bearer(keys.infer), {"x-api-key": keys.infer}):
        await locked.http.post("/v1/classify", content=b"img", headers=headers)
        await locked.stub.Classify(
            messages.ClassifyRequest(image=b"img"), metadata=tuple(headers.items())
        )
    assert seen == [keys.ids["infer"]] * 4


# ---- without keys ----


async def test_without_keys_everything_is_open_but_admin(http_client, stub_classifier, keys):
    headers = bearer("whatever")  # a client that sends one anyway is not in the way
    assert (await http_client.get("/v1/models", headers=headers)).status_code == 200
    assert (await http_client.get("/metrics")).status_code == 200


async def test_admin_is_off_without_a_key_for_it(http_client, locked, keys):
    async def answer(scope, receive):
        raise AssertionError("reached")

    for client, key, code in (
        (http_client, keys.admin, "forbidden"),
        (locked.http, keys.infer, "forbidden"),
        (locked.http, "", "unauthenticated"),
    ):
        app = client._transport.app
        app.router.routes.insert(0, Route("/admin", Endpoint(answer, Access.ADMIN)))
        assert (await client.get("/admin", headers=bearer(key))).json()["code"] == code


# ---- the description ----


async def test_the_openapi_document_tells_which_operations_need_a_key(locked, http_client):
    document = (await locked.http.get("/openapi.json")).json()
    for path, item in document["paths"].items():
        for operation in item.values():
            assert ("security" in operation) == (path not in OPEN_PATHS), path
            assert ("401" in operation["responses"]) == (path not in OPEN_PATHS), path
    open_document = (await http_client.get("/openapi.json")).text
    assert "security" not in open_document
