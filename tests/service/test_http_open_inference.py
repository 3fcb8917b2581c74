"""The Open Inference Protocol over HTTP: health, metadata, infer in all its forms, bad input."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import struct
import zlib

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bundle.image_source import NormalisedView, PixelImage
from service.classifier import Options
from service.errors import ErrorCode, RequestError
from service.http_answer import STATUS
from service.http_api import build_http_app
from service.http_infer import parse_infer
from service.open_inference_messages import InputTensor
from service.open_inference_tensors import read_images

INFER = "/v2/models/toy/infer"
LENGTH = "inference-header-content-length"


def pack(*elements):
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def bytes_input(*images, **changes):
    size = len(pack(*images))
    tensor = {
        "name": "image",
        "datatype": "BYTES",
        "shape": [len(images), 1],
        "parameters": {"binary_data_size": size},
    }
    return {**tensor, **changes}


def in_binary(document, tail):
    head = json.dumps(document).encode()
    return {"content": head + tail, "headers": {LENGTH: str(len(head))}}


def read_answer(response):
    """Returns the JSON of an answer and the raw bytes of its outputs by name."""
    assert response.status_code == 200, response.text
    length = response.headers.get(LENGTH)
    end = len(response.content) if length is None else int(length)
    document = json.loads(response.content[:end])
    raw = {}
    for output in document["outputs"]:
        if "parameters" in output:
            size = output["parameters"]["binary_data_size"]
            raw[output["name"]] = response.content[end : end + size]
            end += size
    assert end == len(response.content)
    return document, raw


def unpack(raw):
    elements = []
    while raw:
        (size,) = struct.unpack_from("<I", raw)
        elements.append(raw[4 : 4 + size].decode())
        raw = raw[4 + size :]
    return elements


def check_error(response, code):
    problem = response.json()
    assert problem["code"] == code, problem
    assert response.status_code == STATUS[ErrorCode(code)] < 500
    assert problem["error"] == problem["detail"]
    return problem


# ---- health and metadata ----


async def test_health_is_200_with_a_small_document(http_client):
    live = await http_client.get("/v2/health/live")
    ready = await http_client.get("/v2/health/ready")
    assert (live.status_code, live.json()) == (200, {"live": True})
    assert (ready.status_code, ready.json()) == (200, {"ready": True})


async def test_a_draining_server_is_live_and_not_ready(http_client, stub_classifier):
    stub_classifier.is_draining, stub_classifier.is_ready = True, False
    assert (await http_client.get("/v2/health/live")).status_code == 200
    for path in ("/v2/health/ready", "/v2/models/toy/ready"):
        answer = await http_client.get(path)
        assert answer.status_code == 503
        assert answer.json()["error"]


async def test_the_server_tells_its_name_and_what_works(http_client):
    answer = (await http_client.get("/v2")).json()
    assert answer["name"] == "fivecrop"
    assert {"binary_tensor_data", "classification"} <= set(answer["extensions"])
    assert "cuda_shared_memory" not in answer["extensions"]


async def test_models_are_listed_and_described(http_client):
    assert (await http_client.get("/v2/models")).json() == {"models": ["toy"]}
    described = {
        "name": "toy",
        "versions": ["3"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1, 1]}],
        "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}],
    }
    assert (await http_client.get("/v2/models/toy")).json() == described
    assert (await http_client.get("/v2/models/toy/versions/3")).json() == described
    ready = await http_client.get("/v2/models/toy/versions/3/ready")
    assert ready.json() == {"name": "toy", "ready": True}


@pytest.mark.parametrize("path", ["", "/ready", "/versions/9", "/versions/9/ready"])
async def test_a_model_that_is_not_served_is_not_found(http_client, path):
    check_error(await http_client.get(f"/v2/models/other{path}"), "model_not_found")
    if "versions" in path:
        check_error(await http_client.get(f"/v2/models/toy{path}"), "model_not_found")


@pytest.mark.parametrize("version", ["latest", "-1", "1e3", "9" * 30, "%2e%2e", "3@3"])
async def test_a_version_is_a_number_of_a_served_one(http_client, version):
    answer = await http_client.get(f"/v2/models/toy/versions/{version}")
    check_error(answer, "model_not_found")


async def test_unknown_paths_and_verbs_carry_the_error_that_clients_read(http_client):
    check_error(await http_client.get("/v2/nothing"), "not_found")
    check_error(await http_client.get(INFER), "method_not_allowed")
    check_error(await http_client.post("/v2"), "method_not_allowed")


# ---- infer ----


async def test_binary_in_and_binary_out(http_client, stub_classifier):
    document = {
        "id": "né 1",
        "inputs": [bytes_input(b"one", b"two!")],
        "outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}],
    }
    response = await http_client.post(INFER, **in_binary(document, pack(b"one", b"two!")))
    answer, raw = read_answer(response)
    assert [image for image, _ in stub_classifier.calls] == [b"one", b"two!"]
    assert stub_classifier.calls[0][1] == Options(model="toy", top_k=1)
    assert answer == {
        "model_name": "toy",
        "model_version": "3",
        "id": "né 1",
        "parameters": {
            "batch_views": 1,
            "decode_ms": 1.0,
            "queue_ms": 2.0,
            "infer_ms": 3.0,
            "total_ms": 6.5,
        },
        "outputs": [
            {
                "name": "probabilities",
                "datatype": "FP32",
                "shape": [2, 3],
                "parameters": {"binary_data_size": 24},
            }
        ],
    }
    assert response.headers["server-timing"].startswith("decode;dur=1.000, queue;dur=2.000, ")
    assert response.headers["content-type"] == "application/octet-stream"
    expected = np.array([[0.25, 0, 0.75]] * 2, "<f4")
    np.testing.assert_array_equal(
        np.frombuffer(raw["probabilities"], "<f4").reshape(2, 3), expected
    )


@pytest.mark.parametrize("nested", [False, True])
async def test_json_in_and_json_out(http_client, stub_classifier, nested):
    texts = [base64.b64encode(image).decode() for image in (b"one", b"two")]
    texts[1] = f"data:image/png;base64,{texts[1]}"
    tensor = {"name": "image", "datatype": "BYTES", "shape": [2, 1] if nested else [2]}
    tensor["data"] = [[text] for text in texts] if nested else texts
    response = await http_client.post(INFER, json={"inputs": [tensor]})
    answer, raw = read_answer(response)
    assert raw == {}
    assert response.headers["content-type"] == "application/json"
    assert "total;dur=6.500" in response.headers["server-timing"]
    assert "id" not in answer
    assert answer["outputs"][0]["data"] == [0.25, 0.0, 0.75] * 2
    assert [image for image, _ in stub_classifier.calls] == [b"one", b"two"]


@pytest.mark.parametrize("path", [INFER, "/v2/models/toy/versions/3/infer"])
async def test_a_raw_request_is_the_image_itself(http_client, stub_classifier, path):
    response = await http_client.post(path, content=b"img", headers={LENGTH: "0"})
    answer, raw = read_answer(response)
    assert answer["outputs"][0]["shape"] == [1, 3]
    assert len(raw["probabilities"]) == 12
    assert stub_classifier.calls[0][0] == b"img"


async def test_one_input_may_leave_its_size_out(http_client, stub_classifier):
    document = {"inputs": [bytes_input(b"one", parameters={})]}
    read_answer(await http_client.post(INFER, **in_binary(document, pack(b"one"))))
    assert stub_classifier.calls[0][0] == b"one"


@pytest.mark.parametrize(
    ("request_wants", "output_wants", "is_binary"),
    [(None, None, False), (True, None, True), (True, False, False), (False, True, True)],
)
async def test_each_output_chooses_its_form(http_client, request_wants, output_wants, is_binary):
    document = {"inputs": [bytes_input(b"one")], "outputs": [{"name": "probabilities"}]}
    if request_wants is not None:
        document["parameters"] = {"binary_data_output": request_wants}
    if output_wants is not None:
        document["outputs"][0]["parameters"] = {"binary_data": output_wants}
    _, raw = read_answer(await http_client.post(INFER, **in_binary(document, pack(b"one"))))
    assert bool(raw) is is_binary


@pytest.mark.parametrize("is_binary", [False, True])
async def test_classification_names_the_best_classes(http_client, stub_classifier, is_binary):
    wants = {"classification": 2, "binary_data": is_binary}
    document = {
        "inputs": [bytes_input(b"one")],
        "outputs": [{"name": "probabilities", "parameters": wants}],
    }
    answer, raw = read_answer(await http_client.post(INFER, **in_binary(document, pack(b"one"))))
    (output,) = answer["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [1, 2])
    texts = unpack(raw["probabilities"]) if is_binary else output["data"]
    assert texts == ["0.750000:2:cát", "0.250000:0:dog"]
    assert stub_classifier.calls[0][1].top_k == 2


@pytest.mark.parametrize(("given_us", "expected_ms"), [(1500, 1.5), (0, None), (10**12, 10.0**9)])
async def test_the_timeout_is_in_microseconds_and_priority_one_is_the_highest(
    http_client, stub_classifier, given_us, expected_ms
):
    document = {
        "parameters": {"timeout": given_us, "priority": 1, "mine": "ignored"},
        "inputs": [bytes_input(b"one")],
    }
    read_answer(await http_client.post(INFER, **in_binary(document, pack(b"one"))))
    assert stub_classifier.calls[0][1].timeout_ms == expected_ms
    assert stub_classifier.calls[0][1].priority == "high"


@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
async def test_compressed_bodies_are_unfolded(http_client, stub_classifier, encoding, compress):
    request = in_binary({"inputs": [bytes_input(b"one")]}, pack(b"one"))
    request["content"] = compress(request["content"])
    request["headers"]["content-encoding"] = encoding
    read_answer(await http_client.post(INFER, **request))
    assert stub_classifier.calls[0][0] == b"one"


async def test_a_bad_image_fails_its_request_and_is_named(http_client):
    document = {"inputs": [bytes_input(b"good", b"bad")]}
    answer = await http_client.post(INFER, **in_binary(document, pack(b"good", b"bad")))
    assert check_error(answer, "image_corrupt")["error"] == "image 1: damaged"


async def test_an_overloaded_server_says_when_to_come_back(http_client, stub_classifier):
    stub_classifier.error = RequestError(ErrorCode.OVERLOADED, "full", retry_after_s=3)
    answer = await http_client.post(INFER, content=b"img", headers={LENGTH: "0"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "3")
    assert answer.json()["error"] == "full"


async def test_several_sizes_and_formats_in_one_request(
    make_tiny_model, metrics, make_settings, make_png
):
    settings = make_settings()
    app = build_http_app(make_tiny_model(settings).classifier, metrics, settings)
    transport = httpx.ASGITransport(app)
    images = [make_png(size, colour) for size, colour in (((8, 8), "red"), ((31, 17), "blue"))]
    async with httpx.AsyncClient(transport=transport, base_url="http://fivecrop") as client:
        document = {"inputs": [bytes_input(*images)]}
        request = in_binary(document, pack(*images))
        answer, _ = read_answer(await client.post("/v2/models/tiny/infer", **request))
        rows = np.reshape(answer["outputs"][0]["data"], answer["outputs"][0]["shape"])
        assert rows.argmax(axis=1).tolist() == [0, 2]
        for row, image in zip(rows, images, strict=True):
            own = (await client.post("/v1/classify", content=image)).json()["predictions"]
            scores = [one["score"] for one in sorted(own, key=lambda one: one["index"])]
            np.testing.assert_allclose(row, scores, atol=1e-6)


# ---- pixels and tensors ----

PIXELS = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
VIEWS = np.linspace(-2, 2, 2 * 3 * 8 * 8, dtype=np.float32).reshape(2, 3, 8, 8)


def as_documents(array, datatype):
    """The ways to send an array: raw, nested and flat."""
    tensor = {"name": "image", "datatype": datatype, "shape": array.shape}
    raw = array.tobytes()
    return [
        in_binary({"inputs": [{**tensor, "parameters": {"binary_data_size": len(raw)}}]}, raw),
        {"json": {"inputs": [{**tensor, "data": array.tolist()}]}},
        {"json": {"inputs": [{**tensor, "data": array.ravel().tolist()}]}},
    ]


@pytest.mark.parametrize(
    ("array", "datatype", "form"),
    [(PIXELS, "UINT8", PixelImage), (VIEWS, "FP32", NormalisedView)],
)
async def test_pixels_and_tensors_come_as_they_are(
    http_client, stub_classifier, array, datatype, form
):
    height, width = (4, 5) if form is PixelImage else (8, 8)
    for sent in as_documents(array, datatype):
        stub_classifier.calls.clear()
        answer = await http_client.post(INFER, **sent)
        assert answer.status_code == 200, answer.text
        for (image, _), one in zip(stub_classifier.calls, array, strict=True):
            assert isinstance(image, form)
            assert (image.width, image.height) == (width, height)
            assert bytes(image.content) == one.tobytes()


async def test_files_may_come_as_rows_of_bytes(http_client, stub_classifier):
    rows = np.frombuffer(b"one\0two\0", np.uint8).reshape(2, 4)
    assert (await http_client.post(INFER, **as_documents(rows, "UINT8")[0])).status_code == 200
    assert [image for image, _ in stub_classifier.calls] == [b"one\0", b"two\0"]


async def test_the_configuration_tells_what_the_input_takes(http_client):
    config = (await http_client.get("/v2/models/toy/config")).json()
    assert config["parameters"].keys() == {"image_BYTES", "image_UINT8", "image_FP32"}


# ---- bad input ----

GOOD = bytes_input(b"one")
TAIL = pack(b"one")
BAD_DOCUMENTS = {
    "no inputs": {},
    "inputs that are no list": {"inputs": {}},
    "no input at all": {"inputs": []},
    "an input twice": {"inputs": [GOOD, {**GOOD, "parameters": {"binary_data_size": 0}}]},
    "an unknown input": {"inputs": [{**GOOD, "name": "pixels"}]},
    "an input without a name": {"inputs": [{**GOOD, "name": None}]},
    "an input that is no object": {"inputs": ["image"]},
    "an unknown datatype": {"inputs": [{**GOOD, "datatype": "STRING"}]},
    "another datatype": {"inputs": [{**GOOD, "datatype": "FP32"}]},
    "no shape": {"inputs": [{**GOOD, "shape": None}]},
    "a negative size": {"inputs": [{**GOOD, "shape": [-1]}]},
    "a size that is a truth": {"inputs": [{**GOOD, "shape": [True]}]},
    "a fractional size": {"inputs": [{**GOOD, "shape": [1.0]}]},
    "a giant size": {"inputs": [{**GOOD, "shape": [2**31]}]},
    "no batch": {"inputs": [{**GOOD, "shape": []}]},
    "nothing by shape": {"inputs": [{**GOOD, "shape": [0]}]},
    "more by shape than there is": {"inputs": [{**GOOD, "shape": [2]}]},
    "too many dimensions": {"inputs": [{**GOOD, "shape": [1, 1, 1]}]},
    "too many images": {"inputs": [{**GOOD, "shape": [33]}]},
    "content past the body": {"inputs": [{**GOOD, "parameters": {"binary_data_size": 8}}]},
    "content left over": {"inputs": [{**GOOD, "parameters": {"binary_data_size": 6}}]},
    "a negative content": {"inputs": [{**GOOD, "parameters": {"binary_data_size": -7}}]},
    "a content size as text": {"inputs": [{**GOOD, "parameters": {"binary_data_size": "7"}}]},
    "content twice": {"inputs": [{**GOOD, "data": ["b25l"]}]},
    "parameters that are a list": {"inputs": [{**GOOD, "parameters": []}]},
    "a layout that is none": {"inputs": [{**GOOD, "parameters": {"layout": "CHWN"}}]},
    "a layout as a number": {"inputs": [{**GOOD, "parameters": {"layout": 1}}]},
    "shared memory": {"inputs": [{**GOOD, "parameters": {"shared_memory_region": "r"}}]},
    "an id that is a number": {"inputs": [GOOD], "id": 7},
    "an unknown output": {"inputs": [GOOD], "outputs": [{"name": "logits"}]},
    "an output twice": {"inputs": [GOOD], "outputs": [{"name": "probabilities"}] * 2},
    "an output without a name": {"inputs": [GOOD], "outputs": [{}]},
    "outputs that are no list": {"inputs": [GOOD], "outputs": "probabilities"},
    "a reserved parameter": {"inputs": [GOOD], "parameters": {"triton_final": True}},
    "a negative timeout": {"inputs": [GOOD], "parameters": {"timeout": -1}},
    "a timeout as text": {"inputs": [GOOD], "parameters": {"timeout": "1"}},
    "a fractional priority": {"inputs": [GOOD], "parameters": {"priority": 1.5}},
    "a binary output that is no truth": {"inputs": [GOOD], "parameters": {"binary_data_output": 1}},
    **{
        f"{datatype} of the shape {shape}": {
            "inputs": [{**GOOD, "datatype": datatype, "shape": shape}]
        }
        for datatype, shape in (
            ("UINT8", [7]),
            ("UINT8", [1, 8]),
            ("UINT8", [7, 0]),
            ("UINT8", [1, 1, 1, 7]),
            ("UINT8", [1, 3, 7, 3]),
            ("UINT8", [1, 2, 7, 2]),
            ("UINT8", [1, 1, 1, 3]),
            ("UINT8", [1, 0, 0, 3]),
            ("UINT8", [1, 2**30, 2**30, 3]),
            ("UINT8", [1, 3, 2**30, 2**30]),
            ("UINT8", [33, 1, 1, 3]),
            ("UINT8", [33, 3, 1, 1]),
            ("FP32", [1, 3, 1, 1]),
            ("FP32", [1, 1, 1, 3]),
            ("FP32", [1, 3, 0, 0]),
            ("FP32", [1, 3, 2**30, 2**30]),
            ("FP16", [1, 3, 1, 1]),
        )
    },
    **{
        f"{datatype} data {data}": {
            "inputs": [{"name": "image", "datatype": datatype, "shape": [1, 1, 1, 3], "data": data}]
        }
        for datatype, data in (
            ("UINT8", [1, 2]),
            ("UINT8", [1, 2, 256]),
            ("UINT8", [1, 2, -1]),
            ("UINT8", [1, 2, 3.0]),
            ("UINT8", [1, 2, "3"]),
            ("UINT8", [1, 2, True, None]),
            ("UINT8", [True, True, True]),
            ("UINT8", [[1, 2, 3]]),
            ("UINT8", [[1], [2, 3]]),
            ("UINT8", []),
            ("UINT8", [10**30, 1, 2]),
        )
    },
}
BAD_DOCUMENTS |= {
    f"classification {value!r}": {
        "inputs": [GOOD],
        "outputs": [{"name": "probabilities", "parameters": {"classification": value}}],
    }
    for value in (-1, "5", 1.5, True, None, 2**64)
}


@pytest.mark.parametrize("name", BAD_DOCUMENTS)
async def test_a_request_that_does_not_add_up_is_refused(http_client, stub_classifier, name):
    answer = await http_client.post(INFER, **in_binary(BAD_DOCUMENTS[name], TAIL))
    check_error(answer, "invalid_argument")
    assert stub_classifier.calls == []


def test_the_request_that_the_bad_ones_differ_from_is_good():
    request = in_binary({"inputs": [GOOD]}, TAIL)
    headers = {LENGTH.encode(): request["headers"][LENGTH].encode()}
    parse_infer(headers, request["content"], model="toy", version="")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "bad_json"),
        (b"\xff\xfe", "bad_json"),
        (b"[]", "invalid_argument"),
        (b'{"inputs": NaN}', "bad_json"),
        (b'{"inputs": [], "inputs": []}', "bad_json"),
        (b"[" * 100_000, "bad_json"),
        (b"[" * 500_000, "bad_json"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "bad_json"),
        (b'{"inputs": [' + b"0," * 1_000_001 + b"0]}", "invalid_argument"),
    ],
)
async def test_a_body_that_is_no_request_is_refused(http_client, body, code):
    check_error(await http_client.post(INFER, content=body), code)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (["not base64!"], "bad_base64"),
        (["b25l", "b25l"], "invalid_argument"),
        ([["b25l"], "b25l"], "invalid_argument"),
        ([7], "invalid_argument"),
        ("b25l", "invalid_argument"),
        ([], "invalid_argument"),
        (["http://127.0.0.1/x.png"], "url_not_allowed"),
    ],
)
async def test_json_data_that_is_no_image_is_refused(http_client, data, code):
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": data}
    check_error(await http_client.post(INFER, json={"inputs": [tensor]}), code)


@pytest.mark.parametrize("tail", [b"", b"\3", b"\3\0\0\0on", pack(b"one") + b"x", b"\xff" * 7])
async def test_elements_that_do_not_add_up_are_refused(http_client, tail):
    tensor = {**GOOD, "parameters": {"binary_data_size": len(tail)}}
    answer = await http_client.post(INFER, **in_binary({"inputs": [tensor]}, tail))
    check_error(answer, "invalid_argument")


async def test_a_url_in_place_of_an_image_is_refused(http_client, stub_classifier):
    url = b"http://169.254.169.254/"
    document = {"inputs": [bytes_input(url)]}
    answers = [
        await http_client.post(INFER, **in_binary(document, pack(url))),
        await http_client.post(INFER, content=url, headers={LENGTH: "0"}),
    ]
    for answer in answers:
        check_error(answer, "url_not_allowed")
    assert stub_classifier.calls == []


@pytest.mark.parametrize("length", ["-1", "1e3", "", "0x10", "999", "9" * 30, "1.0"])
async def test_a_json_length_that_is_none_is_refused(http_client, length):
    answer = await http_client.post(INFER, content=b"{}", headers={LENGTH: length})
    check_error(answer, "invalid_argument")


@pytest.mark.parametrize("name", [LENGTH, "content-encoding"])
async def test_a_header_about_the_body_given_twice_is_refused(http_client, name):
    answer = await http_client.post(INFER, content=b"{}", headers=[(name, "0"), (name, "0")])
    check_error(answer, "invalid_argument")


@pytest.mark.parametrize(
    ("encoding", "body", "code"),
    [
        ("br", b"x", "unsupported_encoding"),
        ("gzip, gzip", b"x", "unsupported_encoding"),
        ("gzip", b"x", "invalid_argument"),
        ("gzip", gzip.compress(b"{}", mtime=0)[:-4], "invalid_argument"),
        ("gzip", gzip.compress(b"{}", mtime=0) + b"x", "invalid_argument"),
        ("deflate", b"\x78\x9c", "invalid_argument"),
        ("gzip", gzip.compress(bytes(20_000_000)), "body_too_large"),
        ("deflate", zlib.compress(bytes(10 * 1024 * 1024 + 1)), "body_too_large"),
    ],
)
async def test_a_body_that_does_not_unfold_is_refused(http_client, encoding, body, code):
    answer = await http_client.post(INFER, content=body, headers={"content-encoding": encoding})
    check_error(answer, code)


async def test_the_content_of_a_body_at_the_limit_unfolds(http_client):
    body = gzip.compress(b"{}" + b" " * (10 * 1024 * 1024 - 2))
    answer = await http_client.post(INFER, content=body, headers={"content-encoding": "gzip"})
    check_error(answer, "invalid_argument")  # of the empty request, not of its size


HEADER_BYTES = st.none() | st.integers(0, 60).map(lambda size: b"%d" % size) | st.binary(max_size=4)
JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["inputs", "outputs", "parameters", "data", "shape", "name", "datatype"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON_LIKE, st.binary(max_size=12), HEADER_BYTES)
def test_no_body_raises_anything_but_our_own_errors(document, tail, length):
    body = json.dumps(document).encode() + tail
    headers = {} if length is None else {LENGTH.encode(): length}
    with contextlib.suppress(RequestError):
        parse_infer(headers, body, model="toy", version="")


@given(st.binary(max_size=40), st.lists(st.integers(0, 5), max_size=3))
def test_no_content_raises_anything_but_our_own_errors(content, shape):
    tensor = InputTensor(
        name="image", datatype="BYTES", shape=tuple(shape), content=memoryview(content)
    )
    with contextlib.suppress(RequestError):
        images = read_images(tensor, max_images=4)
        assert pack(*images) == content
