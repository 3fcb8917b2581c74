"""KServe's inference clients, REST and gRPC, unmodified: their answers are those of our own API."""

from __future__ import annotations

import asyncio
import base64
import warnings

import httpx
import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the packages that kserve imports
    from kserve import (
        InferenceGRPCClient,
        InferenceRESTClient,
        InferInput,
        InferRequest,
        RESTConfig,
    )

MODEL = "cifar10-airbench"


def make_request(images, *, binary):
    tensor = InferInput("image", [len(images), 1], "BYTES")
    if binary:
        tensor.set_data_from_numpy(np.array(images, dtype=np.object_).reshape(-1, 1))
    else:
        tensor.data = [base64.b64encode(image).decode() for image in images]
    return InferRequest(MODEL, [tensor], parameters={"binary_data_output": binary})


@pytest.mark.parametrize("binary", [True, False])
def test_rest(http_address, images, expected, binary):
    async def ask():
        client = InferenceRESTClient(RESTConfig(protocol="v2"))
        url = f"http://{http_address}"
        assert await client.is_server_live(url)
        assert await client.is_server_ready(url)
        assert await client.is_model_ready(url, MODEL)
        answer = await client.infer(url, make_request(images, binary=binary), model_name=MODEL)
        await client.close()
        return answer

    answer = asyncio.run(ask())
    assert answer.model_name == MODEL
    np.testing.assert_allclose(answer.outputs[0].as_numpy(), expected, atol=1e-6)


def test_rest_of_the_first_protocol(http_address, images, expected):
    async def ask(instances):
        client = InferenceRESTClient(RESTConfig(protocol="v1"))
        url = f"http://{http_address}"
        assert await client.is_server_live(url)
        assert await client.is_model_ready(url, MODEL)
        try:
            return await client.infer(url, {"instances": instances}, model_name=MODEL)
        finally:
            await client.close()

    instances = [{"b64": base64.b64encode(image).decode()} for image in images]
    predictions = asyncio.run(ask(instances))["predictions"]
    np.testing.assert_allclose([one["probabilities"] for one in predictions], expected, atol=1e-6)
    named = asyncio.run(ask([{"image_bytes": one} for one in instances]))["predictions"]
    assert named == predictions
    with pytest.raises(httpx.HTTPStatusError, match=r"4(15|22)"):
        asyncio.run(ask([{"b64": base64.b64encode(b"no image").decode()}]))


def test_grpc(grpc_address, images, expected):
    async def ask():
        async with InferenceGRPCClient(grpc_address) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready(MODEL)
            return await client.infer(make_request(images, binary=True))

    answer = asyncio.run(ask())
    assert answer.model_version == "1"
    np.testing.assert_allclose(answer.outputs[0].as_numpy(), expected, atol=1e-6)
