"""tritonclient's model control and statistics, unmodified, by HTTP, gRPC and their asyncio forms.

The server has two workers and API keys: changes reach both, and statistics are those of both.
"""

from __future__ import annotations

import asyncio
import inspect
import os

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from tritonclient.utils import InferenceServerException

MODEL = "cifar10-airbench"
LEAVES = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")


class Client:
    """Any of the four clients, called the same way and with the key."""

    def __init__(self, kind, address):
        self._client = kind.InferenceServerClient(address)
        self._kind = kind
        self._headers = {"authorization": f"Bearer {os.environ['FIVECROP_TEST_KEY']}"}
        self._is_grpc = "grpc" in kind.__name__

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self._finish(self._client.close())

    async def call(self, method, *given, **options):
        if self._is_grpc and method.startswith("get_"):
            options["as_json"] = True
        function = getattr(self._client, method)
        return await self._finish(function(*given, headers=self._headers, **options))

    async def infer(self, image):
        tensor = self._kind.InferInput("image", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[image]], dtype=np.object_))
        return await self.call("infer", MODEL, [tensor])

    async def states(self):
        index = await self.call("get_model_repository_index")
        return {
            (one["name"], one["version"]): one["state"]
            for one in (index["models"] if self._is_grpc else index)
        }

    async def statistics(self):
        (told,) = (await self.call("get_inference_statistics", MODEL))["model_stats"]
        return told

    async def _finish(self, answer):
        return await answer if inspect.isawaitable(answer) else answer


@pytest.fixture(params=["http", "http_aio", "grpc", "grpc_aio"])
def connect(request, http_address, grpc_address):
    kinds = {
        "http": triton_http,
        "http_aio": triton_http_aio,
        "grpc": triton_grpc,
        "grpc_aio": triton_grpc_aio,
    }
    address = grpc_address if "grpc" in request.param else http_address
    return lambda: Client(kinds[request.param], address)


def test_models_are_controlled(connect, images):
    async def control():
        async with connect() as client:
            extensions = (await client.call("get_server_metadata"))["extensions"]
            assert {"model_repository", "statistics"} <= set(extensions)
            assert await client.states() == {(MODEL, "1"): "READY"}
            await client.call("unload_model", MODEL)
            assert not await client.call("is_model_ready", MODEL)
            assert await client.states() == {(MODEL, "1"): "UNAVAILABLE"}
            with pytest.raises(InferenceServerException, match="no such model"):
                await client.infer(images[0])
            await client.call("load_model", MODEL)
            assert await client.call("is_model_ready", MODEL, "1")
            assert await client.states() == {(MODEL, "1"): "READY"}
            await client.infer(images[0])
            with pytest.raises(InferenceServerException, match="no such model"):
                await client.call("load_model", "other")
            with pytest.raises(InferenceServerException, match="leave parameters out"):
                await client.call("load_model", MODEL, config="{}")

    asyncio.run(control())


def test_statistics_count_what_both_workers_did(connect, images):
    async def count():
        async with connect() as client:
            before = await client.statistics()
        for image in images:
            # A connection each, so that both workers get some.
            async with connect() as client:
                await client.infer(image)
        async with connect() as client:
            with pytest.raises(InferenceServerException):
                await client.infer(b"no image")
            after = await client.statistics()

        def grown(leaf, what):
            then, now = (
                int(one["inference_stats"].get(leaf, {}).get(what, 0)) for one in (before, after)
            )
            return now - then

        counts = {leaf: grown(leaf, "count") for leaf in LEAVES}
        assert counts == dict.fromkeys(LEAVES, len(images)) | {"fail": 1}
        assert all(grown(leaf, "ns") > 0 for leaf in LEAVES)
        assert int(after["last_inference"]) >= int(before.get("last_inference", 0))
        for name in ("inference_count", "execution_count"):
            assert int(after[name]) - int(before.get(name, 0)) == len(images)
        assert sum(
            int(one["batch_size"]) * int(one["compute_infer"]["count"])
            for one in after["batch_stats"]
        ) == int(after["inference_count"])

    asyncio.run(count())
