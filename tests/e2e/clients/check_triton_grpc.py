"""tritonclient.grpc, unmodified: its answers are those of our own API."""

from __future__ import annotations

import asyncio
import queue

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

MODEL = "cifar10-airbench"
OUTPUT = "probabilities"


@pytest.fixture
def client(grpc_address):
    with triton.InferenceServerClient(grpc_address) as client:
        yield client


def as_input(images, shape=None):
    elements = np.array(images, dtype=np.object_).reshape(shape or [len(images), 1])
    tensor = triton.InferInput("image", elements.shape, "BYTES")
    tensor.set_data_from_numpy(elements)
    return tensor


def test_health_metadata_and_configuration(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, "1")
    assert not client.is_model_ready("other")
    assert client.get_server_metadata().name == "fivecrop"
    metadata = client.get_model_metadata(MODEL, as_json=True)
    assert [one["name"] for one in metadata["outputs"]] == [OUTPUT]
    config = client.get_model_config(MODEL).config
    assert (config.name, config.output[0].dims) == (MODEL, [10])


@pytest.mark.parametrize("names_output", [False, True])
def test_probabilities_are_those_of_our_own_api(client, images, expected, names_output):
    outputs = [triton.InferRequestedOutput(OUTPUT)] if names_output else None
    result = client.infer(MODEL, [as_input(images)], outputs=outputs, request_id="seven")
    assert result.get_response().id == "seven"
    np.testing.assert_allclose(result.as_numpy(OUTPUT), expected, atol=1e-6)


def test_classification_names_the_best_classes(client, images, classify):
    output = triton.InferRequestedOutput(OUTPUT, class_count=3)
    result = client.infer(MODEL, [as_input(images)], outputs=[output]).as_numpy(OUTPUT)
    assert result.shape == (len(images), 3)
    for image, row in zip(images, result, strict=True):
        for (index, label, score), text in zip(classify(image), row, strict=False):
            value, told_index, told_label = text.decode().split(":")
            assert (int(told_index), told_label) == (index, label)
            assert float(value) == pytest.approx(score, abs=1e-6)


def test_requests_side_by_side(client, images, expected):
    answers = queue.Queue()
    for item, image in enumerate(images):
        client.async_infer(
            MODEL,
            [as_input([image])],
            lambda result, error, item=item: answers.put((item, result, error)),
        )
    for _ in images:
        item, result, error = answers.get(timeout=60)
        assert error is None
        np.testing.assert_allclose(result.as_numpy(OUTPUT)[0], expected[item], atol=1e-6)


@pytest.mark.parametrize("tells_last", [False, True])
def test_a_stream_is_answered_in_order(client, images, expected, tells_last):
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for item, image in enumerate([*images, b"no image", images[0]]):
        client.async_stream_infer(
            MODEL,
            [as_input([image])],
            request_id=str(item),
            enable_empty_final_response=tells_last,
        )
    told = [answers.get(timeout=60) for _ in range(len(images) + 2)]
    client.stop_stream()
    for item, row in enumerate(expected):
        result, error = told[item]
        assert error is None
        assert result.get_response().id == str(item)
        np.testing.assert_allclose(result.as_numpy(OUTPUT)[0], row, atol=1e-6)
    assert told[-2][1] is not None
    np.testing.assert_allclose(told[-1][0].as_numpy(OUTPUT)[0], expected[0], atol=1e-6)


def test_the_asyncio_client(grpc_address, images, expected):
    async def send():
        for image in images:
            yield {"model_name": MODEL, "inputs": [as_input([image])]}

    async def ask():
        async with triton_aio.InferenceServerClient(grpc_address) as client:
            assert await client.is_server_ready()
            results = await asyncio.gather(
                *(client.infer(MODEL, [as_input([image])]) for image in images)
            )
            streamed = [result async for result, _ in client.stream_infer(send())]
            return [[one.as_numpy(OUTPUT)[0] for one in some] for some in (results, streamed)]

    for rows in asyncio.run(ask()):
        np.testing.assert_allclose(rows, expected, atol=1e-6)


def test_timeouts_are_kept(client, images, expected):
    result = client.infer(
        MODEL, [as_input(images)], timeout=60_000_000, client_timeout=60, priority=1
    )
    np.testing.assert_allclose(result.as_numpy(OUTPUT), expected, atol=1e-6)
    with pytest.raises(InferenceServerException) as caught:
        client.infer(MODEL, [as_input(images)], timeout=1)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"


def test_errors_are_told_as_the_client_expects(client, images):
    with pytest.raises(InferenceServerException, match="no such model") as caught:
        client.infer("other", [as_input(images)])
    assert caught.value.status() == "StatusCode.NOT_FOUND"
    with pytest.raises(InferenceServerException, match="image 1: ") as caught:
        client.infer(MODEL, [as_input([images[0], b"no image"])])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
