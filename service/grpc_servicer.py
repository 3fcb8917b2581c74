"""fivecrop.v1.ImageClassifier: messages in, one call of the classifier, messages out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Never, TypeVar

import grpc
from grpc.aio import ServicerContext

from service.access import Access
from service.access_log import log_access
from service.classification import Classification, ExplainOptions, Explanation, Options
from service.classifier import Classifier
from service.errors import ErrorCode, RequestError
from service.grpc_access import Rpc
from service.grpc_answer import (
    DETAILS_KEY,
    STATUS,
    encode_classification,
    encode_details,
    encode_error,
    encode_explanation,
    encode_model,
)
from service.intake import Intake
from service.metrics import Metrics
from service.proto import image_classifier_pb2 as messages
from service.request_id import HEADER, take_request_id
from service.settings import Settings
from service.url_guard import refuse_url

if TYPE_CHECKING:
    from service.tracing import RequestTrace, Tracing

logger = logging.getLogger(__name__)

SERVICE_NAME: Final = "fivecrop.v1.ImageClassifier"
_SERVER_FAULTS: Final = frozenset(
    {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
)

_OPTIONS: Final = ("model", "top_k", "tta", "priority", "coverage", "embedding")

Context = ServicerContext[Any, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """What is known of a call before its message is looked at."""

    route: str
    request_id: str
    timeout_ms: float | None
    metadata: Sequence[tuple[str, str | bytes]]

    def trace_headers(self) -> dict[str, str]:
        """Returns what the client says of its trace."""
        return {
            name: value
            for name, value in self.metadata
            if name in ("traceparent", "tracestate") and isinstance(value, str)
        }


class ImageClassifier:
    """The servicer: each method is one call of the classifier."""

    def __init__(
        self,
        classifier: Classifier,
        metrics: Metrics,
        settings: Settings,
        tracing: Tracing | None = None,
    ) -> None:
        self._classifier = classifier
        self._metrics = metrics
        self._settings = settings
        self._intake = Intake.build(settings, metrics)
        self._tracing = tracing

    def rpcs(self) -> dict[str, Rpc]:
        """Returns the methods of this service, and what each asks of its caller."""
        return {
            "Classify": Rpc(
                access=Access.INFER,
                handler=grpc.unary_unary_rpc_method_handler(
                    self.classify,
                    messages.ClassifyRequest.FromString,
                    messages.ClassifyResponse.SerializeToString,
                ),
            ),
            "ClassifyStream": Rpc(
                access=Access.INFER,
                handler=grpc.stream_stream_rpc_method_handler(
                    self.classify_stream,
                    messages.ClassifyStreamRequest.FromString,
                    messages.ClassifyStreamResponse.SerializeToString,
                ),
            ),
            "Explain": Rpc(
                access=Access.INFER,
                handler=grpc.unary_unary_rpc_method_handler(
                    self.explain,
                    messages.ExplainRequest.FromString,
                    messages.ExplainResponse.SerializeToString,
                ),
            ),
            "Models": Rpc(
                access=Access.INFER,
                handler=grpc.unary_unary_rpc_method_handler(
                    self.list_models,
                    messages.ModelsRequest.FromString,
                    messages.ModelsResponse.SerializeToString,
                ),
            ),
        }

    async def classify(
        self, request: messages.ClassifyRequest, context: Context
    ) -> messages.ClassifyResponse:
        """Answers one image."""
        call = _open(context, "Classify")
        try:
            result = await self._measure(call, self._classify(request, call.timeout_ms))
        except RequestError as error:
            await _abort(context, call, error)
        return encode_classification(result, call.request_id)

    async def classify_stream(
        self, requests: AsyncIterator[messages.ClassifyStreamRequest], context: Context
    ) -> None:
        """Answers images as they finish; reads no further ahead than it may work at once."""
        call = _open(context, "ClassifyStream")
        slots = asyncio.Semaphore(self._settings.max_request_images)
        turn = asyncio.Lock()  # the library takes one write at a time

        async def answer(request: messages.ClassifyStreamRequest) -> None:
            try:
                response = await self._answer_item(request, context, call)
                del request  # a client that reads no answers shall not hold its images here
                async with turn:
                    await context.write(response)
            finally:
                slots.release()

        async with asyncio.TaskGroup() as group:
            async for request in requests:
                await slots.acquire()
                group.create_task(answer(request))

    async def explain(
        self, request: messages.ExplainRequest, context: Context
    ) -> messages.ExplainResponse:
        """Answers where in one image the evidence lies."""
        call = _open(context, "Explain")
        try:
            found = await self._measure(call, self._explain(request, call.timeout_ms))
        except RequestError as error:
            await _abort(context, call, error)
        return encode_explanation(found, call.request_id)

    async def list_models(
        self, request: messages.ModelsRequest, context: Context
    ) -> messages.ModelsResponse:
        """Answers with every served model."""
        del request  # it has no fields
        call = _open(context, "Models")
        try:
            models = await self._measure(call, self._describe_models())
        except RequestError as error:
            await _abort(context, call, error)
        return messages.ModelsResponse(models=models)

    async def _answer_item(
        self, item: messages.ClassifyStreamRequest, context: Context, call: _Call
    ) -> messages.ClassifyStreamResponse:
        timeout_ms = item.timeout_ms if item.HasField("timeout_ms") else None
        if (left_ms := _time_left_ms(context)) is not None:
            timeout_ms = min(left_ms, timeout_ms if timeout_ms is not None else left_ms)
        try:
            result = await self._measure(call, self._classify(item.request, timeout_ms))
        except RequestError as error:
            return messages.ClassifyStreamResponse(id=item.id, error=encode_error(error))
        response = encode_classification(result, call.request_id)
        return messages.ClassifyStreamResponse(id=item.id, response=response)

    async def _classify(
        self, request: messages.ClassifyRequest, timeout_ms: float | None
    ) -> Classification:
        self._check_image(request.image)
        given = _read_fields(request, _OPTIONS)
        options = Options(**given, timeout_ms=timeout_ms)
        with self._intake.admit() as held:
            held.add(len(request.image))
            return await self._classifier.classify(request.image, options)

    async def _explain(
        self, request: messages.ExplainRequest, timeout_ms: float | None
    ) -> Explanation:
        self._check_image(request.image)
        given = _read_fields(request, ("model", "index", "method"))
        options = ExplainOptions(**given, timeout_ms=timeout_ms, has_overlay=request.overlay)
        with self._intake.admit() as held:
            held.add(len(request.image))
            return await self._classifier.explain(request.image, options)

    def _check_image(self, image: bytes) -> None:
        limit = self._settings.max_body_bytes
        if len(image) > limit:
            raise RequestError(ErrorCode.BODY_TOO_LARGE, f"the image is larger than {limit} bytes")
        refuse_url(image)

    async def _describe_models(self) -> list[messages.Model]:
        return [encode_model(model) for model in self._classifier.describe_models()]

    async def _measure(self, call: _Call, work: Awaitable[T]) -> T:
        """Returns what `work` does; counts and traces it."""
        if self._tracing is None:
            return await self._account(call, work, None)
        with self._tracing.serve(call.trace_headers()) as told:
            return await self._account(call, work, told)

    async def _account(self, call: _Call, work: Awaitable[T], told: RequestTrace | None) -> T:
        """Returns what `work` does; counts it; turns what nobody foresaw into `internal`."""
        started = time.perf_counter()
        code = "cancelled"
        result: T | None = None
        try:
            with self._metrics.track_inflight("grpc"):
                result = await work
            code = "ok"
        except RequestError as error:
            code = error.code.value
            raise
        except Exception as cause:
            code = ErrorCode.INTERNAL.value
            logger.exception("unexpected error, request %s", call.request_id)
            raise RequestError(
                ErrorCode.INTERNAL, "something went wrong inside the service"
            ) from cause
        else:
            return result
        finally:
            self._record(call, code, time.perf_counter() - started, result, told)

    def _record(
        self, call: _Call, code: str, seconds: float, result: object, told: RequestTrace | None
    ) -> None:
        trace_id = None
        if told is not None:
            _tell_trace(told, call, code)
            trace_id = told.trace_id
        self._metrics.observe_request(
            transport="grpc", route=call.route, code=code, seconds=seconds, trace_id=trace_id
        )
        if self._settings.access_log:
            log_access(
                transport="grpc",
                route=call.route,
                status=_find_status(code).name,
                code=code,
                seconds=seconds,
                request_id=call.request_id,
                results=(result,) if isinstance(result, Classification) else (),
                trace_id=trace_id,
            )


def _tell_trace(told: RequestTrace, call: _Call, code: str) -> None:
    """Names and describes the span by OpenTelemetry's conventions for gRPC servers."""
    service, method = call.route[1:].split("/")
    told.name = call.route[1:]
    status = _find_status(code)
    told.is_failed = status in _SERVER_FAULTS
    told.attributes |= {
        "rpc.system": "grpc",
        "rpc.service": service,
        "rpc.method": method,
        "rpc.grpc.status_code": status.value[0],
        "fivecrop.code": code,
        "fivecrop.request_id": call.request_id,
    }


def _find_status(code: str) -> grpc.StatusCode:
    if code in ("ok", "cancelled"):
        return grpc.StatusCode[code.upper()]
    return STATUS[ErrorCode(code)]


def _read_fields(request: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Returns the optional fields that the client set."""
    return {name: getattr(request, name) for name in names if request.HasField(name)}


def _open(context: Context, method: str) -> _Call:
    """Returns the call, having promised its id to the client."""
    metadata = tuple(context.invocation_metadata() or ())
    offered = next((v for k, v in metadata if k == HEADER), None)
    request_id = take_request_id(offered if isinstance(offered, str) else None)
    context.set_trailing_metadata(((HEADER, request_id),))
    return _Call(
        route=f"/{SERVICE_NAME}/{method}",
        request_id=request_id,
        timeout_ms=_time_left_ms(context),
        metadata=metadata,
    )


def _time_left_ms(context: Context) -> float | None:
    left_s: float | None = context.time_remaining()
    return None if left_s is None else left_s * 1000


async def _abort(context: Context, call: _Call, error: RequestError) -> Never:
    await context.abort(
        STATUS[error.code],
        error.detail,
        ((HEADER, call.request_id), (DETAILS_KEY, encode_details(error))),
    )
