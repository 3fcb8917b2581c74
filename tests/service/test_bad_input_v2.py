"""Bad input by the Open Inference Protocol: one stable code, REST and gRPC alike, and never 5xx.

Only the model is a toy; edges, limits, decoders, queue and threads are the real ones.
"""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import time
from types import SimpleNamespace

import grpc
import httpx
import pytest
from bad_requests import FILES, JPEG

from service.errors import ErrorCode
from service.grpc_answer import STATUS as GRPC_STATUS
from service.http_answer import STATUS as HTTP_STATUS
from service.http_api import build_http_app
from service.proto import open_inference_pb2 as messages
from service.proto import rpc_status_pb2
from service.proto.open_inference_pb2_grpc import GRPCInferenceServiceStub

PATIENCE_S = 60  # for what takes milliseconds on a machine with nothing else to do
INFER = "/v2/models/tiny/infer"
RPC = "/inference.GRPCInferenceService/ModelInfer"
LENGTH = "inference-header-content-length"
MIB = 1024 * 1024


@pytest.fixture
async def edges(make_tiny_model, make_settings, metrics, serving_grpc):
    """Both edges over one tiny model: `http`, `stub`, `channel`."""
    settings = make_settings()
    model = make_tiny_model(settings)
    transport = httpx.ASGITransport(build_http_app(model.classifier, metrics, settings))
    async with (
        httpx.AsyncClient(transport=transport, base_url="http://fivecrop") as http,
        serving_grpc(model.classifier, metrics, settings) as served,
    ):
        yield SimpleNamespace(
            model=model,
            metrics=metrics,
            http=http,
            channel=served.channel,
            stub=GRPCInferenceServiceStub(served.channel),
        )


def as_tensor(image, **parameters):
    return {"name": "image", "datatype": "BYTES", "shape": [1], **parameters}


async def ask_binary(edges, image):
    raw = struct.pack("<I", len(image)) + image
    head = json.dumps({"inputs": [as_tensor(image, parameters={"binary_data_size": len(raw)})]})
    return await post(edges, content=head.encode() + raw, headers={LENGTH: str(len(head))})


async def ask_raw(edges, image):
    return await post(edges, content=image, headers={LENGTH: "0"})


async def ask_json(edges, image):
    text = base64.b64encode(image).decode()
    return await post(edges, json={"inputs": [as_tensor(image, data=[text])]})


async def post(edges, **sent):
    """Returns "ok" or the code that REST answers, having checked the status and Triton's key."""
    answer = await edges.http.post(INFER, **sent)
    if answer.status_code == 200:
        return "ok"
    problem = answer.json()
    assert problem["error"] == problem["detail"]
    assert answer.status_code == HTTP_STATUS[ErrorCode(problem["code"])] < 500
    return problem["code"]


def make_request(image):
    return messages.ModelInferRequest(
        model_name="tiny",
        inputs=[messages.ModelInferRequest.InferInputTensor(**as_tensor(image))],
        raw_input_contents=[struct.pack("<I", len(image)) + image],
    )


async def ask_grpc(edges, image):
    return await call(edges.stub.ModelInfer(make_request(image), timeout=PATIENCE_S))


async def ask_stream(edges, image):
    (answer,) = [one async for one in edges.stub.ModelStreamInfer(iter([make_request(image)]))]
    return answer.infer_response.parameters["error_code"].string_param or "ok"


async def call(answer):
    """Returns "ok" or the code that gRPC answers, having checked the status that goes with it."""
    try:
        await answer
    except grpc.aio.AioRpcError as error:
        return read_code(error)
    return "ok"


def read_code(error):
    details = dict(error.trailing_metadata())["grpc-status-details-bin"]
    packed = rpc_status_pb2.Status.FromString(details).details[0]
    code = rpc_status_pb2.ErrorInfo.FromString(packed.value).reason
    assert error.code() is GRPC_STATUS[ErrorCode(code)]
    return code


ASKED = (ask_binary, ask_raw, ask_json, ask_grpc, ask_stream)


@pytest.mark.parametrize("name", FILES)
async def test_a_bad_file_gets_its_code_in_every_form_and_disturbs_no_other(edges, name):
    image, code = FILES[name]
    bad = (ask(edges, image) for ask in ASKED)
    good = (ask(edges, JPEG) for ask in ASKED)
    async with asyncio.timeout(PATIENCE_S):
        assert await asyncio.gather(*bad, *good) == [code] * len(ASKED) + ["ok"] * len(ASKED)


# ---- JSON ----

DEEP = {
    "lists": b'{"inputs": ' + b"[" * 100_000,
    "lists that end": b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "objects": b'{"inputs": ' + b'{"a":' * 100_000,
    "data": b'{"inputs":[{"name":"image","datatype":"UINT8","shape":[1,1],"data":'
    + b"[" * 1_000
    + b"1"
    + b"]" * 1_000
    + b"}]}",
    "lists without end": b"[" * MIB,
    "commas without end": b'{"inputs":[' + b"0," * MIB,
    "a number without end": b'{"inputs":' + b"1" * MIB + b"}",
}


@pytest.mark.parametrize("name", DEEP)
async def test_json_that_is_meant_to_cost_is_refused_at_once(edges, name):
    started = time.process_time()
    assert await post(edges, content=DEEP[name]) in ("bad_json", "invalid_argument")
    assert time.process_time() - started < 2


# ---- messages ----


def field(number, content):
    """A length-delimited field, as protobuf writes it."""
    size, length = len(content), bytearray()
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    return bytes((number << 3 | 2,)) + bytes(length) + bytes((size,)) + content


FULL = 10 * MIB - 100
NAMED = field(1, b"tiny")
BOMBS = {
    "inputs": NAMED + b"\x2a\x00" * (FULL // 2),
    "outputs": NAMED + b"\x32\x00" * (FULL // 2),
    "raw contents": NAMED + b"\x3a\x00" * (FULL // 2),
    "parameters": NAMED + b"".join(field(4, field(1, b"%x" % n)) for n in range(FULL // 10)),
    "sizes": NAMED + field(5, field(1, b"image") + field(2, b"BYTES") + field(3, b"\1" * FULL)),
    **{
        f"{datatype} values": NAMED
        + field(
            5,
            field(1, b"image")
            + field(2, datatype)
            + field(3, b"\1")
            + field(5, field(number, b"\1" * FULL)),
        )
        for datatype, number in ((b"BOOL", 1), (b"INT64", 3), (b"UINT8", 4))
    },
    "BYTES values": NAMED
    + field(
        5,
        field(1, b"image")
        + field(2, b"BYTES")
        + field(3, b"\1")
        + field(5, b"\x42\x00" * (FULL // 2)),
    ),
}
NOT_A_MESSAGE = {
    "random bytes": b"\xff" * 100,
    "a field cut off": b"\x2a\x7f" + bytes(10),
    "nested groups": b"\xa3\x06" * 100_000,
}


@pytest.mark.parametrize("name", BOMBS)
async def test_a_message_that_is_meant_to_cost_is_refused_within_a_second_or_two(edges, name):
    infer = edges.channel.unary_unary(RPC)
    started = time.process_time()
    assert await call(infer(BOMBS[name], timeout=PATIENCE_S)) == "invalid_argument"
    assert time.process_time() - started < 2
    assert await ask_grpc(edges, JPEG) == "ok"


@pytest.mark.parametrize(
    "rpc",
    [
        RPC,
        "/inference.GRPCInferenceService/ModelStreamInfer",
        "/fivecrop.v1.ImageClassifier/Classify",
        "/fivecrop.v1.ImageClassifier/ClassifyStream",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ],
)
@pytest.mark.parametrize("name", NOT_A_MESSAGE)
async def test_what_is_no_message_is_refused_as_that(edges, name, rpc):
    answers = edges.channel.stream_stream(rpc)(iter([NOT_A_MESSAGE[name]]), timeout=PATIENCE_S)
    assert await call(answers.read()) == "invalid_argument"
    assert await ask_grpc(edges, JPEG) == "ok"


async def test_calls_that_are_opened_and_reset_leave_nothing_behind(edges):
    edges.model.gate.clear()
    for _ in range(5):
        calls = [edges.stub.ModelInfer(make_request(JPEG)) for _ in range(100)]
        streams = [edges.stub.ModelStreamInfer(iter([make_request(JPEG)] * 4)) for _ in range(20)]
        async with asyncio.timeout(PATIENCE_S):
            while edges.model.waiting < 1:
                await asyncio.sleep(0.001)
        for one in (*calls, *streams):
            one.cancel()
    edges.model.gate.set()
    async with asyncio.timeout(PATIENCE_S):
        for text in (
            "fivecrop_queue_views 0.0",
            'fivecrop_inflight_requests{transport="grpc"} 0.0',
        ):
            while text not in edges.metrics.render()[0].decode():
                await asyncio.sleep(0.01)
    assert await ask_grpc(edges, JPEG) == "ok"
