"""A service that is asked over gRPC, for `fivecrop score`; hand it to `score_dataset` as `connect`.

Outside of `service.score`, which knows no protocol's libraries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import DecodeError

from service.bundle.postprocess import Prediction
from service.errors import ErrorCode
from service.proto import image_classifier_pb2 as messages
from service.proto import rpc_status_pb2
from service.proto.image_classifier_pb2_grpc import ImageClassifierStub
from service.score.errors import JobFailed, ScoreError
from service.score.messages import Spent
from service.score.transport import (
    ANSWER_S,
    CONNECT_S,
    Busy,
    ImageAnswer,
    ImageRefused,
    Question,
    ServedModel,
    judge,
    split_address,
)

_DETAILS_KEY: Final = "grpc-status-details-bin"
_OPTIONS: Final = (
    # A pool of its own: otherwise channels to one address share a connection, and a worker.
    ("grpc.use_local_subchannel_pool", 1),
    # The service is where the operator says, whatever proxy this machine has.
    ("grpc.enable_http_proxy", 0),
    # Every class of a large model with its label; the service is trusted.
    ("grpc.max_receive_message_length", -1),
    # How long to wait before an image is asked for again is decided by who asks.
    ("grpc.enable_retries", 0),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
# What the library, or something in front of the service, says when asking again may help.
_BUSY: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
    }
)

T = TypeVar("T")


class GrpcTransport:
    """One channel."""

    def __init__(self, url: str, key: str | None) -> None:
        """Connects with the first question; ScoreError when the URL is no address."""
        parts = split_address(url)
        if parts.path.strip("/"):
            raise ScoreError(f"{url}: gRPC has no paths")
        is_tls = parts.scheme == "https"
        host = parts.hostname or ""
        address = f"{f'[{host}]' if ':' in host else host}:{parts.port or (443 if is_tls else 80)}"
        self._channel = (
            grpc.secure_channel(address, grpc.ssl_channel_credentials(), _OPTIONS)
            if is_tls
            else grpc.insecure_channel(address, _OPTIONS)
        )
        self._stub = ImageClassifierStub(self._channel)
        self._metadata = () if key is None else (("authorization", f"Bearer {key}"),)

    def models(self) -> list[ServedModel]:
        """Returns what the service has; raises Busy, or JobFailed when it refuses."""
        answer = self._ask(self._stub.Models, messages.ModelsRequest(), CONNECT_S)
        names = ServedModel.__dataclass_fields__
        return [
            ServedModel(**{name: getattr(one, name) for name in names}) for one in answer.models
        ]

    def classify(self, image: bytes, question: Question) -> ImageAnswer:
        """Returns the answer; raises Busy, ImageRefused, or JobFailed when there is no use."""
        request = messages.ClassifyRequest(
            image=image,
            model=question.model,
            top_k=question.top_k,
            tta=question.tta,
            embedding=question.embedding,
            priority="low",
        )
        answer = self._ask(self._stub.Classify, request, ANSWER_S)
        timings = answer.timings
        return ImageAnswer(
            predictions=[
                Prediction(label=one.label, index=one.index, score=one.score)
                for one in answer.predictions
            ],
            abstained=answer.abstained,
            width=answer.image.width,
            height=answer.image.height,
            format=answer.image.format,
            embedding=list(answer.embedding) if question.embedding else None,
            spent=Spent(decode_s=timings.decode_ms / 1000, infer_s=timings.infer_ms / 1000),
        )

    def interrupt(self) -> None:
        """Makes another thread that waits for an answer raise Busy."""
        self._channel.close()

    def close(self) -> None:
        """Lets go of the connection, when no thread uses it."""
        self._channel.close()

    def _ask(self, call: Callable[..., T], request: object, timeout_s: float) -> T:
        try:
            return call(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise _judge(error) from error
        except ValueError as error:
            raise Busy(str(error)) from error  # the channel was closed meanwhile


def _judge(error: Any) -> Busy | ImageRefused | JobFailed:
    """Returns what a failed call means for the job."""
    status, detail = error.code(), " ".join(str(error.details()).split())
    reason, retry_after_s = _read_details(error)
    if reason is not None:
        return judge(reason, detail, retry_after_s)
    if status is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in detail:
        # The library refuses to read such a message, before the service could say why.
        return ImageRefused(ErrorCode.BODY_TOO_LARGE)
    if status in _BUSY:
        return Busy(f"does not answer: {status.name}: {detail}", retry_after_s)
    return JobFailed(f"answers {status.name}, but not as fivecrop does: {detail}")


def _read_details(error: Any) -> tuple[str | None, float | None]:
    """Returns the code that the service gave, and when to come back, as far as it said so.

    They are a google.rpc.Status: https://google.aip.dev/193.
    """
    reason, retry_after_s = None, None
    for name, value in error.trailing_metadata() or ():
        if name != _DETAILS_KEY:
            continue
        try:
            for detail in rpc_status_pb2.Status.FromString(value).details:
                kind = detail.type_url.rpartition("/")[2]
                if kind == "google.rpc.ErrorInfo":
                    reason = rpc_status_pb2.ErrorInfo.FromString(detail.value).reason
                elif kind == "google.rpc.RetryInfo":
                    delay = rpc_status_pb2.RetryInfo.FromString(detail.value).retry_delay
                    retry_after_s = delay.ToTimedelta().total_seconds()
        except DecodeError:
            continue  # somebody else's details
    return reason, retry_after_s
