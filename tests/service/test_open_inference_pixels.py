"""Pixels over the Open Inference Protocol: their layouts, and models that are said to take them."""

from __future__ import annotations

import httpx
import numpy as np
import pytest

from service.errors import RequestError
from service.http_api import build_http_app
from service.open_inference_messages import InputTensor
from service.open_inference_tensors import read_images
from service.proto import open_inference_pb2 as messages
from service.proto.open_inference_pb2_grpc import GRPCInferenceServiceStub

PIXELS = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
PLANES = np.ascontiguousarray(PIXELS.transpose(0, 3, 1, 2))
# What may be either: two images of 3 x 3, and of 3 x 5 or 5 x 3.
SMALL = np.arange(2 * 3 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3, 3)
EITHER = np.arange(2 * 3 * 5 * 3, dtype=np.uint8).reshape(2, 3, 5, 3)


@pytest.fixture
async def edges(stub_classifier, metrics, make_settings, serving_grpc):
    """Both edges of a server that says of its model that it takes pixels."""
    settings = make_settings(pixel_models="other, toy")
    app = build_http_app(stub_classifier, metrics, settings)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://fivecrop")
    async with client, serving_grpc(stub_classifier, metrics, settings) as served:
        yield client, GRPCInferenceServiceStub(served.channel)


def read(array, layout=""):
    tensor = InputTensor(
        name="image",
        datatype="UINT8",
        shape=array.shape,
        content=memoryview(array.tobytes()),
        layout=layout,
    )
    return [one.to_array() for one in read_images(tensor, max_images=32)]


def read_planes(array):
    return array.transpose(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("array", "layout", "expected"),
    [
        (PIXELS, "", PIXELS),
        (PIXELS, "NHWC", PIXELS),
        (PLANES, "", PIXELS),
        (PLANES, "NCHW", PIXELS),
        (SMALL, "NHWC", SMALL),
        (SMALL, "NCHW", read_planes(SMALL)),
        (EITHER, "NHWC", EITHER),
        (EITHER, "NCHW", read_planes(EITHER)),
    ],
)
def test_the_colours_stand_where_the_client_says_or_where_they_must(array, layout, expected):
    np.testing.assert_array_equal(read(array, layout), expected)


@pytest.mark.parametrize(
    ("array", "layout", "told"),
    [
        (SMALL, "", "say which in its parameter layout"),
        (EITHER, "", "say which in its parameter layout"),
        (PIXELS, "NCHW", "of the shape"),
        (PLANES, "NHWC", "of the shape"),
        (PIXELS[..., :2], "", "of the shape"),
    ],
)
def test_a_layout_is_never_guessed(array, layout, told):
    with pytest.raises(RequestError, match=told):
        read(np.ascontiguousarray(array), layout)


@pytest.mark.parametrize("layout", ["NCHW", "FORMAT_NCHW"])
async def test_both_edges_read_the_layout(edges, stub_classifier, layout):
    client, stub = edges
    data = SMALL.ravel().tolist()
    tensor = {"name": "image", "datatype": "UINT8", "shape": SMALL.shape, "data": data}
    sent = {**tensor, "parameters": {"layout": layout}}
    assert (await client.post("/v2/models/toy/infer", json={"inputs": [sent]})).is_success
    message = messages.ModelInferRequest.InferInputTensor(
        name="image", datatype="UINT8", shape=SMALL.shape
    )
    message.parameters["layout"].string_param = layout
    await stub.ModelInfer(
        messages.ModelInferRequest(
            model_name="toy", inputs=[message], raw_input_contents=[SMALL.tobytes()]
        )
    )
    arrays = [image.to_array() for image, _ in stub_classifier.calls]
    np.testing.assert_array_equal(arrays, [*read_planes(SMALL), *read_planes(SMALL)])


async def test_a_model_of_pixels_is_said_to_take_them_at_the_size_that_nothing_is_resized_from(
    edges,
):
    client, stub = edges
    metadata = (await client.get("/v2/models/toy")).json()
    assert metadata["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 9, 9, 3]}]
    told = (await client.get("/v2/models/toy/config")).json()
    (config,) = told["input"]
    assert (config["data_type"], config["format"]) == ("TYPE_UINT8", "FORMAT_NHWC")
    assert config["dims"] == [9, 9, 3]
    over_grpc = (await stub.ModelConfig(messages.ModelConfigRequest(name="toy"))).config
    assert list(over_grpc.input[0].dims) == [9, 9, 3]
    assert over_grpc.input[0].format == messages.ModelInput.Format.FORMAT_NHWC
    described = await stub.ModelMetadata(messages.ModelMetadataRequest(name="toy"))
    assert described.inputs[0].datatype == "UINT8"


async def test_a_model_of_pixels_takes_files_as_well(edges, stub_classifier):
    client, _ = edges
    raw = {"inference-header-content-length": "0"}
    answer = await client.post("/v2/models/toy/infer", content=b"file", headers=raw)
    assert answer.is_success
    assert [image for image, _ in stub_classifier.calls] == [b"file"]
