"""The infer messages of the Open Inference Protocol over gRPC, from and to our own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Never

from service.errors import ErrorCode, RequestError
from service.open_inference_messages import (
    Content,
    InferRequest,
    InferResponse,
    InputTensor,
    RequestedOutput,
)
from service.open_inference_parameters import (
    read_classes,
    read_layout,
    read_priority,
    read_timeout_ms,
)
from service.proto import open_inference_pb2 as messages

# Where `contents` keeps the elements of each datatype; others are sent as raw bytes.
_FIELDS: Final = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_LARGEST_SIZE: Final = 2**31
# A message of ten megabytes may hold five million tensors of nothing, or ten million numbers. As
# parsed they take little; one by one they would keep the event loop busy for seconds.
_MAX_TENSORS: Final = 16
_MAX_PARAMETERS: Final = 64
_MAX_DIMENSIONS: Final = 16
_MAX_ELEMENTS: Final = 1_000_000


def decode_request(request: messages.ModelInferRequest, timeout_ms: float | None) -> InferRequest:
    """Returns what a message asks, within the deadline of its call.

    Raises:
        RequestError: `invalid_argument`.
    """
    if max(len(request.inputs), len(request.outputs)) > _MAX_TENSORS:
        _refuse(f"there are at most {_MAX_TENSORS} inputs and outputs")
    parameters = read_parameters(request.parameters)
    asked_ms = read_timeout_ms(parameters)
    if asked_ms is not None:
        timeout_ms = asked_ms if timeout_ms is None else min(asked_ms, timeout_ms)
    return InferRequest(
        model=request.model_name,
        version=request.model_version,
        id=request.id,
        timeout_ms=timeout_ms,
        priority=read_priority(parameters),
        inputs=_read_inputs(request),
        outputs=tuple(
            RequestedOutput(
                name=output.name, classes=read_classes(read_parameters(output.parameters))
            )
            for output in request.outputs
        ),
    )


def encode_response(response: InferResponse) -> messages.ModelInferResponse:
    """Returns the message; its outputs are raw bytes, as Triton sends them."""
    work = response.describe_work()
    return messages.ModelInferResponse(
        model_name=response.model,
        model_version=str(response.version),
        id=response.id,
        parameters={
            name: messages.InferParameter(int64_param=value)
            if isinstance(value, int)
            else messages.InferParameter(double_param=value)
            for name, value in work.items()
        },
        outputs=[
            messages.ModelInferResponse.InferOutputTensor(
                name=tensor.name, datatype=tensor.datatype, shape=tensor.shape
            )
            for tensor in response.outputs
        ],
        raw_output_contents=[tensor.pack() for tensor in response.outputs],
    )


def _read_inputs(request: messages.ModelInferRequest) -> tuple[InputTensor, ...]:
    raw = request.raw_input_contents
    if raw and (
        len(raw) != len(request.inputs)
        or any(tensor.HasField("contents") for tensor in request.inputs)
    ):
        _refuse("raw_input_contents holds the content of every input, or of none")
    return tuple(
        InputTensor(
            name=tensor.name,
            datatype=tensor.datatype,
            shape=_read_shape(tensor),
            layout=read_layout(read_parameters(tensor.parameters)),
            content=memoryview(raw[item]) if raw else _read_contents(tensor),
        )
        for item, tensor in enumerate(request.inputs)
    )


def _read_contents(tensor: messages.ModelInferRequest.InferInputTensor) -> Content:
    field = _FIELDS.get(tensor.datatype)
    if field is None:
        _refuse(f"contents cannot hold what input {tensor.name} claims to be")
    if any(other.name != field for other, _ in tensor.contents.ListFields()):
        _refuse(f"the contents of input {tensor.name} are of another datatype")
    elements = getattr(tensor.contents, field)
    if len(elements) > _MAX_ELEMENTS:
        _refuse("there are too many values: send raw_input_contents")
    return list(elements)


def _read_shape(tensor: messages.ModelInferRequest.InferInputTensor) -> tuple[int, ...]:
    if len(tensor.shape) > _MAX_DIMENSIONS:
        _refuse(f"a shape has at most {_MAX_DIMENSIONS} sizes")
    if not all(0 <= size < _LARGEST_SIZE for size in tensor.shape):
        _refuse("a shape is a list of sizes, none of them negative")
    return tuple(tensor.shape)


def read_parameters(
    parameters: Mapping[str, messages.InferParameter | messages.ModelRepositoryParameter],
) -> dict[str, object]:
    """Returns the values; an unset one is no value at all.

    Raises:
        RequestError: `invalid_argument`: there are too many.
    """
    if len(parameters) > _MAX_PARAMETERS:
        _refuse(f"there are at most {_MAX_PARAMETERS} parameters")
    return {
        name: getattr(parameter, choice)
        for name, parameter in parameters.items()
        if (choice := parameter.WhichOneof("parameter_choice")) is not None
    }


def _refuse(detail: str) -> Never:
    raise RequestError(ErrorCode.INVALID_ARGUMENT, detail)
