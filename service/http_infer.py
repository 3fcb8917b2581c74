"""The infer request and answer of the Open Inference Protocol over HTTP.

A body is JSON, or JSON and then the raw content of tensors, when the header
`Inference-Header-Content-Length` says where the JSON ends (the binary tensor data extension). 0
there means that the whole body is the content of the one input: `curl --data-binary @cat.jpg`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, Never

from service.classification import find_slowest
from service.errors import ErrorCode, RequestError
from service.http_answer import Answer, encode_json
from service.http_body import decode_base64
from service.http_json import load_json
from service.http_results import server_timing
from service.open_inference_messages import (
    Content,
    InferRequest,
    InferResponse,
    InputTensor,
    OutputTensor,
    RequestedOutput,
)
from service.open_inference_metadata import INPUT
from service.open_inference_parameters import (
    read_classes,
    read_flag,
    read_layout,
    read_priority,
    read_timeout_ms,
)

HEADER_LENGTH: Final = b"inference-header-content-length"

_LENGTH = re.compile(rb"[0-9]{1,18}")
# Pixels as nested lists: a 512 x 512 image has 262,657 of them.
_MAX_JSON_BRACKETS: Final = 300_000
_MAX_JSON_VALUES: Final = 1_000_000
_MAX_TENSORS: Final = 16

Document = dict[str, Any]


def parse_infer(
    headers: Mapping[bytes, bytes], body: bytes, *, model: str, version: str
) -> InferRequest:
    """Returns the request in a body whose Content-Encoding is undone.

    Raises:
        RequestError: `bad_json`, `invalid_argument`, `bad_base64`, `url_not_allowed`.
    """
    length = headers.get(HEADER_LENGTH)
    if length is None:
        return _parse(body, memoryview(b""), model, version, has_tail=False)
    if not _LENGTH.fullmatch(length) or int(length) > len(body):
        _refuse("Inference-Header-Content-Length is not a length within the body")
    end = int(length)
    if end == 0:
        tensor = InputTensor(name=INPUT, datatype="BYTES", shape=(1,), content=[body])
        return InferRequest(model=model, version=version, inputs=(tensor,))
    return _parse(body[:end], memoryview(body)[end:], model, version, has_tail=True)


def answer_infer(response: InferResponse) -> Answer:
    """Returns the answer: JSON, and after it the outputs that were wanted as bytes."""
    outputs, blobs = [], []
    for tensor in response.outputs:
        output: Document = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": tensor.shape,
        }
        if tensor.is_binary:
            blob = tensor.pack()
            output["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            output["data"] = _list_elements(tensor)
        outputs.append(output)
    document: Document = {
        "model_name": response.model,
        "model_version": str(response.version),
        "parameters": response.describe_work(),
        "outputs": outputs,
    }
    if response.id:
        document["id"] = response.id
    head = encode_json(document)
    timing = server_timing(find_slowest(response.results).timings)
    if not blobs:
        return Answer(body=head, headers=(timing,), results=response.results)
    return Answer(
        body=b"".join((head, *blobs)),
        media_type=b"application/octet-stream",
        headers=((HEADER_LENGTH, b"%d" % len(head)), timing),
        results=response.results,
    )


def _parse(
    text: bytes, tail: memoryview, model: str, version: str, *, has_tail: bool
) -> InferRequest:
    document = _as_object(
        load_json(
            text,
            max_brackets=_MAX_JSON_BRACKETS,
            max_commas=_MAX_JSON_VALUES,
            too_many=RequestError(
                ErrorCode.INVALID_ARGUMENT, "there are too many values: send binary tensor data"
            ),
        ),
        "the request",
    )
    parameters = _as_object(document.get("parameters", {}), "parameters")
    outputs = document.get("outputs")
    name = document.get("id", "")
    if not isinstance(name, str):
        _refuse("id is text")
    return InferRequest(
        model=model,
        version=version,
        id=name,
        timeout_ms=read_timeout_ms(parameters),
        priority=read_priority(parameters),
        inputs=_read_inputs(_as_list(document.get("inputs"), "inputs"), tail, has_tail),
        outputs=None if outputs is None else _read_outputs(outputs, parameters),
        has_binary_outputs=read_flag(parameters, "binary_data_output", False),
    )


def _read_inputs(items: list[Any], tail: memoryview, has_tail: bool) -> tuple[InputTensor, ...]:
    inputs = []
    start = 0
    for item in items:
        tensor = _as_object(item, "an input")
        parameters = _as_object(tensor.get("parameters", {}), "parameters")
        layout = read_layout(parameters)
        size = parameters.get("binary_data_size")
        if size is None and has_tail and "data" not in tensor and len(items) == 1:
            size = len(tail)  # OpenVINO Model Server lets clients leave it out, and so they do
        if (size is None) == ("data" not in tensor):
            _refuse("an input has either data or binary_data_size")
        name, datatype = tensor.get("name"), tensor.get("datatype")
        if not isinstance(name, str) or not isinstance(datatype, str):
            _refuse("an input has a name and a datatype")
        content: Content
        if size is None:
            content = _read_elements(tensor["data"], datatype)
        else:
            if type(size) is not int or not 0 <= size <= len(tail) - start:
                _refuse("binary_data_size is not a size within the body")
            content = tail[start : start + size]
            start += size
        inputs.append(
            InputTensor(
                name=name,
                datatype=datatype,
                shape=_read_shape(tensor.get("shape")),
                content=content,
                layout=layout,
            )
        )
    if start != len(tail):
        _refuse("the body has more content than its inputs")
    return tuple(inputs)


def _read_elements(data: object, datatype: str) -> list[Any]:
    elements = _as_list(data, "data", largest=None)
    if datatype != "BYTES":
        return elements
    while any(isinstance(element, list) for element in elements):
        if not all(isinstance(element, list) for element in elements):
            _refuse("data is nested unevenly")
        elements = [inner for element in elements for inner in element]
    if not all(isinstance(element, str) for element in elements):
        _refuse("the elements of a BYTES tensor are base64 text")
    return [decode_base64(element) for element in elements]


def _read_shape(shape: object) -> tuple[int, ...]:
    sizes = _as_list(shape, "shape")
    if not all(type(size) is int and 0 <= size < 2**31 for size in sizes):
        _refuse("a shape is a list of sizes, none of them negative")
    return tuple(sizes)


def _read_outputs(items: object, parameters: Document) -> tuple[RequestedOutput, ...]:
    is_binary = read_flag(parameters, "binary_data_output", False)
    outputs = []
    for item in _as_list(items, "outputs"):
        output = _as_object(item, "an output")
        asked = _as_object(output.get("parameters", {}), "parameters")
        name = output.get("name")
        if not isinstance(name, str):
            _refuse("an output has a name")
        outputs.append(
            RequestedOutput(
                name=name,
                classes=read_classes(asked),
                is_binary=read_flag(asked, "binary_data", is_binary),
            )
        )
    return tuple(outputs)


def _list_elements(tensor: OutputTensor) -> list[Any]:
    """Returns the elements in row-major order, as JSON has them."""
    if isinstance(tensor.values, list):
        return [element.decode() for element in tensor.values]
    elements: list[Any] = tensor.values.ravel().tolist()
    return elements


def _as_object(value: object, what: str) -> Document:
    if not isinstance(value, dict):
        _refuse(f"{what} is an object")
    return value


def _as_list(value: object, what: str, *, largest: int | None = _MAX_TENSORS) -> list[Any]:
    if not isinstance(value, list) or (largest is not None and len(value) > largest):
        _refuse(f"{what} is a list" + (f" of at most {largest}" if largest else ""))
    return value


def _refuse(detail: str) -> Never:
    raise RequestError(ErrorCode.INVALID_ARGUMENT, detail)
