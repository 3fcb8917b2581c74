"""What gRPC answers: status codes with their details, and messages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from service.bundle.manifest import DecisionReference
from service.bundle.postprocess import Prediction
from service.classification import Classification, Explanation, ModelDescription, Timings
from service.errors import ErrorCode, RequestError
from service.proto import image_classifier_pb2 as messages
from service.proto import rpc_status_pb2

STATUS: Final[dict[ErrorCode, grpc.StatusCode]] = {
    ErrorCode.INVALID_ARGUMENT: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorCode.BAD_JSON: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorCode.BAD_BASE64: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorCode.EMPTY_BODY: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorCode.URL_NOT_ALLOWED: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorCode.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    ErrorCode.FORBIDDEN: grpc.StatusCode.PERMISSION_DENIED,
    ErrorCode.MODEL_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    ErrorCode.MODEL_LOAD_FAILED: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorCode.PROMOTION_REFUSED: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorCode.MEMORY_EXCEEDED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorCode.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    # Those that only HTTP has; the library answers their like before any code of ours runs.
    ErrorCode.METHOD_NOT_ALLOWED: grpc.StatusCode.UNIMPLEMENTED,
    ErrorCode.REQUEST_TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
    ErrorCode.BODY_TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorCode.HEADERS_TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorCode.IMAGE_TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorCode.UNSUPPORTED_MEDIA: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorCode.UNSUPPORTED_ENCODING: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorCode.IMAGE_CORRUPT: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorCode.IMAGE_TOO_COMPLEX: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorCode.UNSUPPORTED_CODEC: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorCode.RATE_LIMITED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorCode.OVERLOADED: grpc.StatusCode.UNAVAILABLE,
    ErrorCode.NOT_READY: grpc.StatusCode.UNAVAILABLE,
    ErrorCode.DRAINING: grpc.StatusCode.UNAVAILABLE,
    ErrorCode.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
    ErrorCode.INFERENCE_FAILED: grpc.StatusCode.INTERNAL,
    ErrorCode.NONFINITE_OUTPUT: grpc.StatusCode.INTERNAL,
    ErrorCode.INTERNAL: grpc.StatusCode.INTERNAL,
}

DETAILS_KEY: Final = "grpc-status-details-bin"
DOMAIN: Final = "fivecrop"

_TYPES: Final = "type.googleapis.com/google.rpc."


def encode_details(error: RequestError) -> bytes:
    """Returns the google.rpc.Status of an error: ErrorInfo, and RetryInfo when waiting helps."""
    status = rpc_status_pb2.Status(code=STATUS[error.code].value[0], message=error.detail)
    info = rpc_status_pb2.ErrorInfo(reason=error.code.value, domain=DOMAIN)
    status.details.append(_pack("ErrorInfo", info))
    if error.retry_after_s is not None:
        retry = rpc_status_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(math.ceil(error.retry_after_s * 1000))
        status.details.append(_pack("RetryInfo", retry))
    return status.SerializeToString()


def _pack(name: str, message: Message) -> AnyMessage:
    return AnyMessage(type_url=_TYPES + name, value=message.SerializeToString())


def encode_error(error: RequestError) -> messages.ClassifyError:
    """Returns the error of one item of a stream."""
    return messages.ClassifyError(
        code=error.code.value, detail=error.detail, retry_after_s=error.retry_after_s
    )


def encode_classification(result: Classification, request_id: str) -> messages.ClassifyResponse:
    """Returns the message for one classified image."""
    timings, verdict = result.timings, result.verdict
    response = messages.ClassifyResponse(
        request_id=request_id,
        model=result.model,
        version=result.version,
        predictions=_encode_predictions(result.predictions),
        abstained=verdict.abstained,
        decision=_encode_decision(verdict.threshold, result.reference),
        image=messages.ImageInfo(width=result.width, height=result.height, format=result.format),
        timings=_encode_timings(timings),
        embedding=result.embedding,
        batch_views=result.batch_views,
    )
    if verdict.group is not None:
        response.group.CopyFrom(
            messages.Group(label=verdict.group.label, score=verdict.group.score)
        )
    if result.label_set is not None:
        response.label_set.coverage = result.label_set.coverage
        response.label_set.predictions.extend(_encode_predictions(result.label_set.predictions))
    response.members.extend(
        messages.Member(
            model=one.model, version=one.version, tta=one.tta, label=one.label, score=one.score
        )
        for one in result.members
    )
    return response


def encode_explanation(found: Explanation, request_id: str) -> messages.ExplainResponse:
    """Returns the message for one explained image."""
    best = found.prediction
    height, width = found.evidence.shape
    return messages.ExplainResponse(
        request_id=request_id,
        model=found.model,
        version=found.version,
        method=found.method,
        prediction=messages.Prediction(label=best.label, index=best.index, score=best.score),
        height=height,
        width=width,
        values=found.evidence.ravel(),
        overlay=found.overlay,
        image=messages.ImageInfo(width=found.width, height=found.height, format=found.format),
        timings=_encode_timings(found.timings),
        member=found.member,
    )


def _encode_timings(timings: Timings) -> messages.Timings:
    return messages.Timings(
        decode_ms=timings.decode_s * 1000,
        queue_ms=timings.queue_s * 1000,
        infer_ms=timings.infer_s * 1000,
        total_ms=timings.total_s * 1000,
    )


def _encode_predictions(predictions: Sequence[Prediction]) -> list[messages.Prediction]:
    return [
        messages.Prediction(label=one.label, index=one.index, score=one.score)
        for one in predictions
    ]


def _encode_decision(
    threshold: float | None, reference: DecisionReference | None
) -> messages.Decision | None:
    if threshold is None:
        return None
    if reference is None:
        return messages.Decision(abstain_below=threshold)
    return messages.Decision(
        abstain_below=threshold, coverage=reference.coverage, accuracy=reference.accuracy
    )


def encode_model(model: ModelDescription) -> messages.Model:
    """Returns the message that describes a model."""
    return messages.Model(
        name=model.name,
        version=model.version,
        is_default=model.is_default,
        state=model.state,
        provider=model.provider,
        variant=model.variant,
        classes=model.classes,
        input_height=model.input_height,
        input_width=model.input_width,
        digest=model.digest,
        top1=model.top1,
        labels=model.labels,
        decision=_encode_decision(model.decision.abstain_below, model.decision.reference),
        roll_up=_encode_reference(model.decision.roll_up),
        label_sets=[
            messages.LabelSets(
                tta=one.tta,
                levels=[
                    messages.LabelSetLevel(
                        coverage=level.coverage,
                        measured_coverage=level.measured_coverage,
                        mean_labels=level.mean_labels,
                    )
                    for level in one.levels
                ],
            )
            for one in model.decision.conformal
        ],
        version_labels=model.version_labels,
        kind=model.kind,
        members=model.members,
    )


def _encode_reference(reference: DecisionReference | None) -> messages.Reference | None:
    if reference is None:
        return None
    return messages.Reference(coverage=reference.coverage, accuracy=reference.accuracy)
