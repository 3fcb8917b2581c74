"""The Open Inference Protocol over gRPC, through real channels over a stub classifier."""

from __future__ import annotations

import asyncio
import struct

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from service.classifier import Options
from service.errors import ErrorCode, RequestError
from service.grpc_answer import STATUS
from service.proto import open_inference_pb2 as messages
from service.proto import rpc_status_pb2
from service.proto.image_classifier_pb2 import ClassifyRequest
from service.proto.image_classifier_pb2_grpc import ImageClassifierStub
from service.proto.open_inference_pb2_grpc import GRPCInferenceServiceStub

PATIENCE_S = 30  # for what takes milliseconds on a machine with nothing else to do
Tensor = messages.ModelInferRequest.InferInputTensor
Output = messages.ModelInferRequest.InferRequestedOutputTensor


@pytest.fixture
async def served(stub_classifier, metrics, make_settings, serving_grpc):
    async with serving_grpc(stub_classifier, metrics, make_settings()) as served:
        served.stub = GRPCInferenceServiceStub(served.channel)
        yield served


@pytest.fixture
def stub(served):
    return served.stub


def pack(*elements):
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def ask(*images, raw=None, **changes):
    tensor = Tensor(name="image", datatype="BYTES", shape=[len(images), 1])
    given = {"model_name": "toy", "inputs": [tensor], **changes}
    return messages.ModelInferRequest(
        **given, raw_input_contents=[pack(*images)] if raw is None else raw
    )


async def refused(call):
    """Returns the code that a call is refused with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    status = rpc_status_pb2.Status.FromString(
        dict(error.trailing_metadata())["grpc-status-details-bin"]
    )
    code = rpc_status_pb2.ErrorInfo.FromString(status.details[0].value).reason
    assert error.code() is STATUS[ErrorCode(code)]
    return code


# ---- health, metadata, configuration ----


async def test_health_tells_live_ready_and_which_models(stub, stub_classifier):
    assert (await stub.ServerLive(messages.ServerLiveRequest())).live
    assert (await stub.ServerReady(messages.ServerReadyRequest())).ready
    for name, version, is_ready in (("toy", "", True), ("toy", "3", True), ("toy", "4", False)):
        request = messages.ModelReadyRequest(name=name, version=version)
        assert (await stub.ModelReady(request)).ready is is_ready
    assert not (await stub.ModelReady(messages.ModelReadyRequest(name="other"))).ready
    stub_classifier.is_draining, stub_classifier.is_ready = True, False
    assert (await stub.ServerLive(messages.ServerLiveRequest())).live
    assert not (await stub.ServerReady(messages.ServerReadyRequest())).ready
    assert not (await stub.ModelReady(messages.ModelReadyRequest(name="toy"))).ready


async def test_metadata_and_configuration_are_those_of_rest(stub, http_client):
    server = await stub.ServerMetadata(messages.ServerMetadataRequest())
    assert list(server.extensions) == (await http_client.get("/v2")).json()["extensions"]
    model = await stub.ModelMetadata(messages.ModelMetadataRequest(name="toy"))
    assert (model.name, list(model.versions), model.platform) == ("toy", ["3"], "onnxruntime_onnx")
    assert [(one.name, one.datatype, list(one.shape)) for one in model.inputs] == [
        ("image", "BYTES", [-1, 1])
    ]
    config = (await stub.ModelConfig(messages.ModelConfigRequest(name="toy"))).config
    told = (await http_client.get("/v2/models/toy/config")).json()
    assert (
        config.parameters["image_FP32"].string_value
        == (told["parameters"]["image_FP32"]["string_value"])
    )
    assert config.max_batch_size == told["max_batch_size"] == 32
    assert config.output[0].dims == told["output"][0]["dims"] == [3]
    assert config.input[0].data_type == messages.TYPE_STRING
    batching = config.dynamic_batching
    assert (batching.preferred_batch_size, batching.max_queue_delay_microseconds) == ([4], 2000)


@pytest.mark.parametrize("method", ["ModelMetadata", "ModelConfig"])
async def test_a_model_that_is_not_served_is_not_found(stub, method):
    request = getattr(messages, f"{method}Request")
    for asked in (request(name="other"), request(name="toy", version="x")):
        assert await refused(getattr(stub, method)(asked)) == "model_not_found"


async def test_reflection_describes_the_service(served):
    reflection = reflection_pb2_grpc.ServerReflectionStub(served.channel)
    asked = reflection_pb2.ServerReflectionRequest(
        file_containing_symbol="inference.GRPCInferenceService"
    )
    async for answer in reflection.ServerReflectionInfo(iter([asked])):
        files = answer.file_descriptor_response.file_descriptor_proto
        described = descriptor_pb2.FileDescriptorProto.FromString(files[0])
        names = {method.name for service in described.service for method in service.method}
        assert {"ModelInfer", "ModelStreamInfer"} <= names
        return
    pytest.fail("no answer")


# ---- ModelInfer ----

TIMINGS = {"decode_ms": 1, "queue_ms": 2, "infer_ms": 3, "total_ms": 6.5}


async def test_raw_contents_are_classified(stub, stub_classifier):
    answer = await stub.ModelInfer(ask(b"one", b"two!", id="7", model_version="3"))
    assert [image for image, _ in stub_classifier.calls] == [b"one", b"two!"]
    assert stub_classifier.calls[0][1] == Options(model="toy@3", top_k=1)
    assert (answer.model_name, answer.model_version, answer.id) == ("toy", "3", "7")
    assert answer.parameters["batch_views"].int64_param == 1
    told = {name: answer.parameters[name].double_param for name in TIMINGS}
    assert told == TIMINGS
    (output,) = answer.outputs
    assert (output.name, output.datatype, output.shape) == ("probabilities", "FP32", [2, 3])
    values = np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(2, 3)
    np.testing.assert_array_equal(values, [[0.25, 0, 0.75]] * 2)


async def test_typed_contents_are_images_as_they_are(stub, stub_classifier):
    tensor = Tensor(name="image", datatype="BYTES", shape=[2])
    tensor.contents.bytes_contents.extend([b"one", b"two"])
    await stub.ModelInfer(messages.ModelInferRequest(model_name="toy", inputs=[tensor]))
    assert [image for image, _ in stub_classifier.calls] == [b"one", b"two"]


async def test_classification_names_the_best_classes(stub):
    wanted = {"classification": messages.InferParameter(int64_param=2)}
    request = ask(b"one", outputs=[Output(name="probabilities", parameters=wanted)])
    answer = await stub.ModelInfer(request)
    assert (answer.outputs[0].datatype, answer.outputs[0].shape) == ("BYTES", [1, 2])
    expected = pack("0.750000:2:cát".encode(), b"0.250000:0:dog")
    assert answer.raw_output_contents == [expected]


@pytest.mark.parametrize(
    ("asked_us", "call_s", "expected_ms"), [(1500, 60, 1.5), (10**12, 60, 60_000), (0, None, None)]
)
async def test_the_nearer_deadline_counts(stub, stub_classifier, asked_us, call_s, expected_ms):
    request = ask(b"one", parameters={"timeout": messages.InferParameter(uint64_param=asked_us)})
    await stub.ModelInfer(request, timeout=call_s)
    told_ms = stub_classifier.calls[0][1].timeout_ms
    if expected_ms is None:
        assert told_ms is None
    else:
        assert 0.5 * expected_ms < told_ms < 1.1 * expected_ms


async def test_pixels_come_raw_or_as_contents(stub, stub_classifier):
    pixels = bytes(range(24))
    raw = Tensor(name="image", datatype="UINT8", shape=[2, 2, 2, 3])
    typed = Tensor(name="image", datatype="UINT8", shape=[2, 2, 2, 3])
    typed.contents.uint_contents.extend(pixels)
    for request in (ask(inputs=[raw], raw=[pixels]), ask(inputs=[typed], raw=[])):
        stub_classifier.calls.clear()
        await stub.ModelInfer(request)
        images = [image for image, _ in stub_classifier.calls]
        assert [bytes(image.content) for image in images] == [pixels[:12], pixels[12:]]
        assert {(image.width, image.height) for image in images} == {(2, 2)}


async def test_a_tensor_of_numbers_without_end_is_refused_before_it_is_unpacked(stub):
    tensor = Tensor(name="image", datatype="UINT8", shape=[1, 1_000_001])
    tensor.contents.uint_contents.extend(bytes(1_000_001))
    assert await refused(stub.ModelInfer(ask(inputs=[tensor], raw=[]))) == "invalid_argument"


async def test_a_call_outside_of_a_stream_may_ask_which_answer_is_the_last(stub):
    """Triton's perf_analyzer does."""
    asked = {"triton_enable_empty_final_response": messages.InferParameter(bool_param=True)}
    answer = await stub.ModelInfer(ask(b"one", parameters=asked))
    assert answer.model_name == "toy"


@pytest.mark.parametrize(("level", "priority"), [(0, "normal"), (1, "high"), (3, "low")])
async def test_the_priority_counts(stub, stub_classifier, level, priority):
    parameters = {"priority": messages.InferParameter(uint64_param=level)}
    await stub.ModelInfer(ask(b"one", parameters=parameters))
    assert stub_classifier.calls[0][1].priority == priority


async def test_a_bad_image_fails_its_request(stub):
    assert await refused(stub.ModelInfer(ask(b"good", b"bad"))) == "image_corrupt"


PARAMETER = messages.InferParameter
TYPED = Tensor(name="image", datatype="BYTES", shape=[1])
TYPED.contents.bytes_contents.append(b"one")
FLOATS = Tensor(name="image", datatype="BYTES", shape=[1])
FLOATS.contents.fp32_contents.append(1.0)
BAD_REQUESTS = {
    "no input": messages.ModelInferRequest(model_name="toy"),
    "an unknown input": ask(b"x", inputs=[Tensor(name="y", datatype="BYTES", shape=[1])]),
    "an input twice": ask(b"x", inputs=[TYPED, TYPED], raw=[]),
    "another datatype": ask(b"x", inputs=[Tensor(name="image", datatype="FP64", shape=[1])]),
    "no datatype": ask(b"x", inputs=[Tensor(name="image", shape=[1])], raw=[]),
    "a negative size": ask(b"x", inputs=[Tensor(name="image", datatype="BYTES", shape=[-1])]),
    "a giant size": ask(b"x", inputs=[Tensor(name="image", datatype="BYTES", shape=[2**62])]),
    "no shape": ask(b"x", inputs=[Tensor(name="image", datatype="BYTES")]),
    "a wrong shape": ask(b"x", inputs=[Tensor(name="image", datatype="BYTES", shape=[1, 2])]),
    "too many images": ask(*[b"x"] * 33),
    "too little raw content": ask(b"x", raw=[pack(b"x")[:-1]]),
    "too much raw content": ask(b"x", raw=[pack(b"x") + b"x"]),
    "raw content of two inputs": ask(b"x", raw=[pack(b"x")] * 2),
    "raw and typed content": ask(b"x", inputs=[TYPED]),
    "typed content of another type": ask(b"x", inputs=[FLOATS], raw=[]),
    "an unknown output": ask(b"x", outputs=[Output(name="logits")]),
    "a negative classification": ask(
        b"x",
        outputs=[
            Output(name="probabilities", parameters={"classification": PARAMETER(int64_param=-1)})
        ],
    ),
    "a classification by name": ask(
        b"x",
        outputs=[
            Output(name="probabilities", parameters={"classification": PARAMETER(string_param="5")})
        ],
    ),
    "shared memory": ask(
        b"x",
        inputs=[
            Tensor(
                name="image",
                datatype="BYTES",
                shape=[1],
                parameters={"shared_memory_region": PARAMETER(string_param="r")},
            )
        ],
        raw=[],
    ),
    "a reserved parameter": ask(b"x", parameters={"triton_x": PARAMETER(bool_param=True)}),
    "a negative timeout": ask(b"x", parameters={"timeout": PARAMETER(int64_param=-1)}),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
async def test_a_request_that_does_not_add_up_is_refused(stub, stub_classifier, name):
    assert await refused(stub.ModelInfer(BAD_REQUESTS[name])) == "invalid_argument"
    assert stub_classifier.calls == []


async def test_an_unknown_model_and_a_url_are_refused(stub, stub_classifier):
    assert await refused(stub.ModelInfer(ask(b"file:///x"))) == "url_not_allowed"
    stub_classifier.error = RequestError(ErrorCode.MODEL_NOT_FOUND, "no such model")
    assert await refused(stub.ModelInfer(ask(b"x", model_name="other"))) == "model_not_found"


async def test_a_cancelled_call_cancels_its_work(stub, stub_classifier):
    stub_classifier.gate = asyncio.Event()
    call = stub.ModelInfer(ask(b"one"))
    await asyncio.wait_for(stub_classifier.arrived.wait(), PATIENCE_S)
    call.cancel()
    await asyncio.wait_for(stub_classifier.cancelled.wait(), PATIENCE_S)


# ---- ModelStreamInfer ----


async def test_a_stream_is_answered_in_order_and_survives_a_bad_image(stub):
    images = [b"one", b"bad", b"three", b"four"]
    requests = iter([ask(image, id=str(item)) for item, image in enumerate(images)])
    answers = [answer async for answer in stub.ModelStreamInfer(requests)]
    assert [answer.infer_response.id for answer in answers] == ["0", "1", "2", "3"]
    assert [answer.error_message for answer in answers] == ["", "damaged", "", ""]
    failed = answers[1].infer_response
    assert failed.parameters["error_code"].string_param == "image_corrupt"
    assert answers[3].infer_response.outputs[0].shape == [1, 3]


async def test_a_client_may_ask_that_an_error_ends_its_stream(stub):
    requests = iter([ask(b"bad"), ask(b"good")])
    call = stub.ModelStreamInfer(requests, metadata=(("triton_grpc_error", "true"),))

    async def read():
        return [answer async for answer in call]

    assert await refused(read()) == "image_corrupt"


async def test_a_client_may_ask_which_answer_is_the_last_to_a_request(stub):
    wanted = {"triton_enable_empty_final_response": PARAMETER(bool_param=True)}
    requests = iter([ask(b"one", parameters=wanted), ask(b"two")])
    answers = [answer.infer_response async for answer in stub.ModelStreamInfer(requests)]
    assert answers[0].parameters["triton_final_response"].bool_param
    assert "triton_final_response" not in answers[1].parameters


async def test_a_stream_works_on_no_more_than_a_request_may_hold(
    stub_classifier, metrics, make_settings, serving_grpc
):
    settings = make_settings(max_request_images=2)
    stub_classifier.gate = asyncio.Event()
    async with serving_grpc(stub_classifier, metrics, settings) as served:
        call = GRPCInferenceServiceStub(served.channel).ModelStreamInfer(
            iter([ask(b"x") for _ in range(12)])
        )
        await asyncio.wait_for(stub_classifier.arrived.wait(), PATIENCE_S)
        stub_classifier.gate.set()
        assert len([answer async for answer in call]) == 12
    # Those that wait to be written, the one being written and the one that waits for a place.
    assert stub_classifier.most_running <= 4


async def test_both_services_share_the_bounds_of_what_is_received(
    stub_classifier, metrics, make_settings, serving_grpc
):
    settings = make_settings(max_inflight_requests=1)
    stub_classifier.gate = asyncio.Event()
    async with serving_grpc(stub_classifier, metrics, settings) as served:
        ours = ImageClassifierStub(served.channel).Classify(ClassifyRequest(image=b"img"))
        await asyncio.wait_for(stub_classifier.arrived.wait(), PATIENCE_S)
        theirs = GRPCInferenceServiceStub(served.channel)
        assert await refused(theirs.ModelInfer(ask(b"img"), timeout=PATIENCE_S)) == "overloaded"
        stub_classifier.gate.set()
        await ours
        assert (await theirs.ModelInfer(ask(b"img"))).model_version == "3"
