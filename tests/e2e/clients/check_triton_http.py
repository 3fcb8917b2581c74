"""tritonclient.http, unmodified: its answers are those of our own API."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

MODEL = "cifar10-airbench"
OUTPUT = "probabilities"


@pytest.fixture
def client(http_address):
    with triton.InferenceServerClient(http_address) as client:
        yield client


def as_input(images, shape=None):
    elements = np.array(images, dtype=np.object_).reshape(shape or [len(images), 1])
    tensor = triton.InferInput("image", elements.shape, "BYTES")
    tensor.set_data_from_numpy(elements)
    return tensor


def test_health_and_metadata(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, "1")
    assert not client.is_model_ready("other")
    assert client.get_server_metadata()["name"] == "fivecrop"
    metadata = client.get_model_metadata(MODEL)
    assert [one["name"] for one in metadata["inputs"]] == ["image"]
    assert [one["name"] for one in metadata["outputs"]] == [OUTPUT]


@pytest.mark.parametrize("binary", [None, True, False])
def test_probabilities_are_those_of_our_own_api(client, images, expected, binary):
    outputs = None if binary is None else [triton.InferRequestedOutput(OUTPUT, binary)]
    result = client.infer(MODEL, [as_input(images)], outputs=outputs, request_id="seven")
    assert result.get_response()["id"] == "seven"
    np.testing.assert_allclose(result.as_numpy(OUTPUT), expected, atol=1e-6)


def test_one_image_a_request_gives_the_same(client, images, expected):
    for image, row in zip(images, expected, strict=True):
        result = client.infer(MODEL, [as_input([image], [1])], model_version="1")
        np.testing.assert_allclose(result.as_numpy(OUTPUT)[0], row, atol=1e-6)


@pytest.mark.parametrize("binary", [True, False])
def test_classification_names_the_best_classes(client, images, classify, binary):
    output = triton.InferRequestedOutput(OUTPUT, binary, class_count=3)
    result = client.infer(MODEL, [as_input(images)], outputs=[output]).as_numpy(OUTPUT)
    assert result.shape == (len(images), 3)
    for image, row in zip(images, result, strict=True):
        for (index, label, score), text in zip(classify(image), row, strict=False):
            told = text.decode() if isinstance(text, bytes) else text
            value, told_index, told_label = told.split(":")
            assert (int(told_index), told_label) == (index, label)
            assert float(value) == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize("how", ["gzip", "deflate"])
def test_compressed_requests_and_answers(client, images, expected, how):
    result = client.infer(
        MODEL,
        [as_input(images)],
        request_compression_algorithm=how,
        response_compression_algorithm=how,
    )
    np.testing.assert_allclose(result.as_numpy(OUTPUT), expected, atol=1e-6)


def test_requests_side_by_side(http_address, images, expected):
    with triton.InferenceServerClient(http_address, concurrency=4) as client:
        pending = [client.async_infer(MODEL, [as_input([image])]) for image in images]
        rows = [one.get_result().as_numpy(OUTPUT)[0] for one in pending]
    np.testing.assert_allclose(rows, expected, atol=1e-6)


def test_the_asyncio_client(http_address, images, expected):
    async def ask():
        async with triton_aio.InferenceServerClient(http_address) as client:
            assert await client.is_server_ready()
            results = await asyncio.gather(
                *(client.infer(MODEL, [as_input([image])]) for image in images)
            )
            return [result.as_numpy(OUTPUT)[0] for result in results]

    np.testing.assert_allclose(asyncio.run(ask()), expected, atol=1e-6)


def test_timeout_and_priority_are_taken(client, images, expected):
    result = client.infer(MODEL, [as_input(images)], timeout=60_000_000, priority=1)
    np.testing.assert_allclose(result.as_numpy(OUTPUT), expected, atol=1e-6)
    with pytest.raises(InferenceServerException, match="deadline") as caught:
        client.infer(MODEL, [as_input(images)], timeout=1)
    assert caught.value.status() == "504"


def test_errors_are_told_as_the_client_expects(client, images):
    with pytest.raises(InferenceServerException, match="no such model") as caught:
        client.infer("other", [as_input(images)])
    assert caught.value.status() == "404"
    with pytest.raises(InferenceServerException, match="image 1: ") as caught:
        client.infer(MODEL, [as_input([images[0], b"no image"])])
    assert caught.value.status() == "415"
