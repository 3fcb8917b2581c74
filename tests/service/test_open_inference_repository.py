"""The model repository extension: what Triton's administrators do, on the live models."""

from __future__ import annotations

import grpc
import pytest

from service.proto import open_inference_pb2 as messages
from service.proto.open_inference_pb2_grpc import GRPCInferenceServiceStub

NAME = "digits-linear"
MODEL = f"/v2/repository/models/{NAME}"


async def index(client, **asked):
    answer = await client.post("/v2/repository/index", json=asked or None)
    assert answer.status_code == 200, answer.text
    return {(one["name"], one["version"]): one["state"] for one in answer.json()}


async def test_a_model_is_unloaded_and_loaded_again(administered):
    client = (await administered()).http
    assert "model_repository" in (await client.get("/v2")).json()["extensions"]
    assert await index(client) == {(NAME, "1"): "READY"}
    answer = await client.post(f"{MODEL}/unload", json={"parameters": {"unload_dependents": False}})
    assert (answer.status_code, answer.content) == (200, b"")
    assert await index(client) == {(NAME, "1"): "UNAVAILABLE"}
    assert await index(client, ready=True) == {}
    assert (await client.get(f"/v2/models/{NAME}/ready")).status_code == 404
    answer = await client.post(f"{MODEL}/load", json={})
    assert (answer.status_code, answer.content) == (200, b"")
    assert await index(client, ready=True) == {(NAME, "1"): "READY"}
    assert (await client.get(f"/v2/models/{NAME}/ready")).status_code == 200


async def test_loading_a_served_model_serves_what_is_new(administered, growing_repository):
    client = (await administered()).http
    growing_repository.publish(2)
    assert await index(client) == {(NAME, "1"): "READY", (NAME, "2"): "UNAVAILABLE"}
    assert (await client.post(f"{MODEL}/load")).status_code == 200
    assert await index(client) == {(NAME, "1"): "UNAVAILABLE", (NAME, "2"): "READY"}


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("models/other/load", b"", 404, "model_not_found"),
        ("models/other/unload", b"", 404, "model_not_found"),
        (f"models/{NAME}/load", b'{"parameters":{"config":"{}"}}', 400, "invalid_argument"),
        (f"models/{NAME}/load", b'{"parameters":{"file:1/m":"eA=="}}', 400, "invalid_argument"),
        (f"models/{NAME}/unload", b'{"parameters":{"x":1}}', 400, "invalid_argument"),
        (
            f"models/{NAME}/unload",
            b'{"parameters":{"unload_dependents":true}}',
            400,
            "invalid_argument",
        ),
        (f"models/{NAME}/load", b"[]", 400, "invalid_argument"),
        (f"models/{NAME}/load", b'{"parameters":3}', 400, "invalid_argument"),
        (f"models/{NAME}/load", b"{", 400, "bad_json"),
        (f"models/{NAME}/load", b"[" * 60_000, 400, "bad_json"),
        (f"models/{NAME}/load", b" " * 70_000, 413, "body_too_large"),
        ("index", b'{"ready":1}', 400, "invalid_argument"),
        ("other/index", b"", 404, "not_found"),
    ],
)
async def test_orders_that_mean_nothing_change_nothing(administered, path, body, status, code):
    client = (await administered()).http
    answer = await client.post(f"/v2/repository/{path}", content=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.json()["error"]
    assert await index(client) == {(NAME, "1"): "READY"}


async def test_without_keys_it_is_neither_open_nor_advertised(http_client):
    answer = await http_client.post("/v2/repository/models/toy/unload")
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert "model_repository" not in (await http_client.get("/v2")).json()["extensions"]


async def test_grpc_does_the_same(administered):
    edges = await administered()
    stub = GRPCInferenceServiceStub(edges.channel)
    told = {"metadata": edges.metadata}

    async def states(**asked):
        answer = await stub.RepositoryIndex(messages.RepositoryIndexRequest(**asked), **told)
        return {(one.name, one.version): one.state for one in answer.models}

    assert await states() == {(NAME, "1"): "READY"}
    request = messages.RepositoryModelUnloadRequest(model_name=NAME)
    request.parameters["unload_dependents"].bool_param = False
    await stub.RepositoryModelUnload(request, **told)
    assert await states() == {(NAME, "1"): "UNAVAILABLE"}
    assert await states(ready=True) == {}
    await stub.RepositoryModelLoad(messages.RepositoryModelLoadRequest(model_name=NAME), **told)
    assert await states() == {(NAME, "1"): "READY"}
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.RepositoryModelLoad(
            messages.RepositoryModelLoadRequest(model_name="other"), **told
        )
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    request = messages.RepositoryModelLoadRequest(model_name=NAME)
    request.parameters["config"].string_param = "{}"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.RepositoryModelLoad(request, **told)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
