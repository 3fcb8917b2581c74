"""The access log: who was answered by which model and how fast, and nothing of any image."""

from __future__ import annotations

import base64
import json
import struct

import grpc
import httpx
import numpy as np
import pytest
from bad_requests import RANDOM
from failing import Babbling

from service.http_api import build_http_app
from service.log import configure_log
from service.proto import image_classifier_pb2 as messages
from service.proto import open_inference_pb2 as v2_messages
from service.proto.image_classifier_pb2_grpc import ImageClassifierStub
from service.proto.open_inference_pb2_grpc import GRPCInferenceServiceStub

pytestmark = pytest.mark.usefixtures("log_put_back")

PIXELS = np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8)
TENSOR = (PIXELS.transpose(2, 0, 1) / 255).astype("<f4").tobytes()
FILE_NAME = "jane-doe-xray.png"
BROKEN = RANDOM

REQUEST = {"transport", "route", "status", "code", "total_ms", "request_id"}
IMAGES = {"images", "failed"}
ANSWER = {"model", "version", "decode_ms", "queue_ms", "infer_ms"}
VIEWS = {"views", "batch_views"}
RECORD = {"time", "level", "logger", "pid"}


@pytest.fixture
def image(make_png):
    """A PNG file whose bytes are like no others."""
    return make_png((9, 9), (1, 99, 201)) + b"after the end: a name, a place"


@pytest.fixture
async def served(make_tiny_model, metrics, make_settings, serving_grpc):
    """Both edges of a server with an access log and every route, over one tiny model."""
    drop_ins = {"torchserve": True, "tfserving": True, "sagemaker": True}
    settings = make_settings(access_log=True, **drop_ins)
    model = make_tiny_model(settings)
    app = build_http_app(model.classifier, metrics, settings)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://fivecrop")
    async with client, serving_grpc(model.classifier, metrics, settings) as over_grpc:
        over_grpc.client = client
        yield over_grpc


def to_text(image):
    return base64.b64encode(image).decode()


def in_json(document):
    return {"json": document}


def in_form(*images):
    return {"files": [("image", (FILE_NAME, image, "image/png")) for image in images]}


def as_bytes(image):
    return struct.pack("<I", len(image)) + image


def in_binary(datatype, shape, content):
    """Returns a v2 request with one input, whose content stands after the JSON."""
    parameters = {"binary_data_size": len(content)}
    tensor = {"name": "image", "datatype": datatype, "shape": shape, "parameters": parameters}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"inference-header-content-length": str(len(head))}
    return {"content": head + content, "headers": headers}


def v2_json(datatype, shape, data):
    tensor = {"name": "image", "datatype": datatype, "shape": shape, "data": data}
    return in_json({"inputs": [tensor]})


INFER = "/v2/models/tiny/infer"
RAW = {"inference-header-content-length": "0"}
HTTP_FORMS = {
    "raw": lambda image: ("/v1/classify", {"content": image}),
    "a form": lambda image: ("/v1/classify", in_form(image)),
    "a form of several": lambda image: ("/v1/classify", in_form(image, BROKEN)),
    "JSON": lambda image: ("/v1/classify", in_json({"image": to_text(image)})),
    "JSON of several": lambda image: (
        "/v1/classify",
        in_json({"images": [f"data:image/png;base64,{to_text(image)}", to_text(BROKEN)]}),
    ),
    "explained": lambda image: ("/v1/explain?method=occlusion", {"content": image}),
    "drawn": lambda image: (
        "/v1/explain?method=occlusion",
        {"content": image, "headers": {"accept": "image/png"}},
    ),
    "v2 raw": lambda image: (INFER, {"content": image, "headers": RAW}),
    "v2 binary": lambda image: (INFER, in_binary("BYTES", [1], as_bytes(image))),
    "v2 pixels": lambda _: (INFER, in_binary("UINT8", [1, 8, 8, 3], PIXELS.tobytes())),
    "v2 tensor": lambda _: (INFER, in_binary("FP32", [1, 3, 8, 8], TENSOR)),
    "v2 JSON": lambda image: (INFER, v2_json("BYTES", [1], [to_text(image)])),
    "v2 JSON pixels": lambda _: (INFER, v2_json("UINT8", [1, 8, 8, 3], PIXELS.ravel().tolist())),
    "TorchServe": lambda image: ("/predictions/tiny", {"content": image}),
    "TorchServe form": lambda image: ("/predictions/tiny", {"files": {"data": (FILE_NAME, image)}}),
    "TensorFlow Serving": lambda image: (
        "/v1/models/tiny:predict",
        in_json({"instances": [{"b64": to_text(image)}]}),
    ),
    "SageMaker": lambda image: ("/invocations", {"content": image}),
}


def make_infer(content, datatype="BYTES", shape=(1,)):
    tensor = v2_messages.ModelInferRequest.InferInputTensor(
        name="image", datatype=datatype, shape=shape
    )
    return v2_messages.ModelInferRequest(
        model_name="tiny", inputs=[tensor], raw_input_contents=[content]
    )


def make_infer_contents(image):
    request = make_infer(b"")
    del request.raw_input_contents[:]
    request.inputs[0].contents.bytes_contents.append(image)
    return request


def streamed(image):
    request = messages.ClassifyRequest(image=image)
    return messages.ClassifyStreamRequest(id="1", request=request)


GRPC_FORMS = {
    "Classify": lambda image: ("Classify", messages.ClassifyRequest(image=image)),
    "ClassifyStream": lambda image: ("ClassifyStream", streamed(image)),
    "Explain": lambda image: (
        "Explain",
        messages.ExplainRequest(image=image, method="occlusion", overlay=True),
    ),
    "v2 raw contents": lambda image: ("ModelInfer", make_infer(as_bytes(image))),
    "v2 contents": lambda image: ("ModelInfer", make_infer_contents(image)),
    "v2 tensor": lambda _: ("ModelInfer", make_infer(TENSOR, "FP32", (1, 3, 8, 8))),
    "v2 stream": lambda image: ("ModelStreamInfer", make_infer(as_bytes(image))),
}


NOTATIONS = (
    to_text,
    bytes.hex,
    lambda part: part.decode("latin-1"),
    lambda part: repr(part)[2:-1],
    lambda part: repr(list(part))[1:-1],
)


async def send(served, name, request):
    """Sends one message by one of the methods of both services; returns the status."""
    stub = GRPCInferenceServiceStub if name.startswith("Model") else ImageClassifierStub
    method = getattr(stub(served.channel), name)
    try:
        if "Stream" in name:
            async for _ in method(iter([request])):
                pass
        else:
            await method(request)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


def check_nothing_of(image, said):
    """Checks that no part of twelve bytes of an image is in a text, in any usual notation."""
    assert FILE_NAME not in said
    for start in range(0, len(image) - 12, 12):
        part = image[start : start + 12]
        assert not any(write(part) in said for write in NOTATIONS), part


@pytest.mark.parametrize("write", NOTATIONS)
def test_an_image_would_be_found_in_a_log(write):
    with pytest.raises(AssertionError):
        check_nothing_of(BROKEN, f"cannot decode {write(BROKEN)}")


def check_line(capsys, image, keys):
    said = capsys.readouterr().err
    (line,) = [json.loads(one) for one in said.splitlines()]
    assert line.keys() == RECORD | keys
    assert line["logger"] == "service.access_log"
    # Whatever else it holds is a number, or one of the service's own few words.
    own = (line["route"], line["status"], line["code"], line["request_id"], line.get("model"))
    words = [value for key, value in line.items() if key not in RECORD and isinstance(value, str)]
    assert set(words) <= {*own, "http", "grpc"}
    for sent in (image, BROKEN, PIXELS.tobytes(), TENSOR):
        check_nothing_of(sent, said)
    return line


@pytest.mark.parametrize("form", HTTP_FORMS)
async def test_an_http_request_leaves_one_line_with_nothing_of_its_image(
    served, image, capsys, form
):
    path, body = HTTP_FORMS[form](image)
    configure_log("debug", "json")
    answer = await served.client.post(path, **body)
    assert answer.status_code == 200, answer.text
    is_explained = path.startswith("/v1/explain")
    keys = REQUEST | IMAGES | ANSWER | (set() if is_explained else VIEWS)
    line = check_line(capsys, image, keys)
    assert (line["model"], line["version"], line["code"]) == ("tiny", 1, "ok")
    assert line["request_id"] == answer.headers["x-request-id"]
    assert line["failed"] == line["images"] - 1 == ("several" in form)


@pytest.mark.parametrize("form", HTTP_FORMS)
async def test_a_refused_http_request_leaves_nothing_of_its_image_either(served, capsys, form):
    path, body = HTTP_FORMS[form](BROKEN)
    configure_log("debug", "json")
    answer = await served.client.post(path.replace("tiny", "jane-doe"), **body)
    is_json_of_a_part = answer.status_code == 200
    line = check_line(capsys, BROKEN, REQUEST | IMAGES if is_json_of_a_part else REQUEST)
    assert "jane-doe" not in json.dumps(line)
    assert line["status"] == answer.status_code


@pytest.mark.parametrize("form", GRPC_FORMS)
async def test_a_call_leaves_one_line_with_nothing_of_its_image(served, image, capsys, form):
    method, request = GRPC_FORMS[form](image)
    configure_log("debug", "json")
    assert await send(served, method, request) == "OK"
    keys = REQUEST | IMAGES | ANSWER | (set() if method == "Explain" else VIEWS)
    line = check_line(capsys, image, keys)
    assert (line["model"], line["version"], line["code"]) == ("tiny", 1, "ok")
    assert line["route"].endswith(f"/{method}")


@pytest.mark.parametrize("form", [form for form in GRPC_FORMS if form != "v2 tensor"])
async def test_a_refused_call_leaves_nothing_of_its_image_either(served, capsys, form):
    method, request = GRPC_FORMS[form](BROKEN)
    configure_log("debug", "json")
    await send(served, method, request)
    line = check_line(capsys, BROKEN, REQUEST)
    assert line["code"] == "unsupported_media"


async def test_a_call_whose_answer_cannot_be_told_has_one_id_wherever_it_is_named(
    serving_grpc, metrics, make_settings, capsys
):
    configure_log("debug", "json")
    async with serving_grpc(Babbling(), metrics, make_settings(access_log=True)) as served:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ImageClassifierStub(served.channel).Classify(messages.ClassifyRequest(image=b"x"))
    told = dict(refused.value.trailing_metadata())["x-request-id"]
    access, error = [json.loads(one) for one in capsys.readouterr().err.splitlines()]
    assert access["request_id"] == told
    assert error["message"].endswith(f"unexpected error, request {told}")
